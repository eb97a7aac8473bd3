"""App: what OpenVINO's own benchmark_app reaches with the graph of a pack, on the same cores."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.bare import Timed
from pthserve.engines.openvino_engine import PRECISIONS
from pthserve.loading.packed import GRAPH, INT8

PROGRAM = Path(sys.executable).parent / "benchmark_app"


def images(pack: Path, precision: str, shape: tuple[int, ...], threads: int, seconds: float) -> Timed:
    """Seconds an image, one a pass, in as many streams at once as there are threads.

    precision: fp32, bf16, fp16 or int8, computed as the service's engine does. shape: of one image's tensor.
    Raises CalledProcessError where it fails, RuntimeError where it prints no throughput.
    """
    argv = [
        *(str(PROGRAM), "-m", str(pack / (INT8 if precision == "int8" else GRAPH)), "-d", "CPU"),
        *("-hint", "none", "-nstreams", str(threads), "-nthreads", str(threads)),
        *(
            "-t",
            str(max(1, round(seconds))),
            "-infer_precision",
            PRECISIONS[precision],
            "-shape",
            str([1, *shape]).replace(" ", ""),
        ),
    ]
    printed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Throughput:\s+([\d.]+) FPS", printed)
    if not found:
        raise RuntimeError(f"benchmark_app printed no throughput:\n{printed[-2000:]}")
    return Timed(1 / float(found[1]), float(threads))
