"""The answers of a packed model, from a process that has not imported PyTorch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_ANSWERS = """
import json, sys
import pthserve

pack, *images = sys.argv[1:]
with pthserve.load(pack, threads=1, engine="openvino", precision="fp32") as model:
    answers = [answer.to_dict(1) for answer in model.batch(images)]
absent = sorted({"torch", "torchvision"} & sys.modules.keys())
print(json.dumps({"answers": answers, "imported": absent, "golden": len(model.golden)}))
"""


def answers(pack: Path, images: list[Path], *, golden: int = 0) -> list[dict[str, Any]]:
    """What the pack answers for each image, at fp32; its golden images, so many, agree."""
    command = [sys.executable, "-c", _ANSWERS, str(pack), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["imported"], result["golden"]) == ([], golden)
    found: list[dict[str, Any]] = result["answers"]
    return found
