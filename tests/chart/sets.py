"""Values that the tests render: those of sets.yaml, and every example by its file's name."""

from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "k8s" / "examples"

SETS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text()) | {
    path.name: yaml.safe_load(path.read_text())
    for path in sorted(EXAMPLES.glob("*.yaml"))
    if path.name not in ("hostpath-claim.yaml", "score.yaml", "score-kueue.yaml")  # which are no values
}
SHA256 = SETS["new claim"]["weights"]["sha256"]
# As its first lines say, this one is pinned on the command line.
SETS["gpu.yaml"]["weights"]["sha256"] = SHA256
