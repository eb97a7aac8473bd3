"""The lock files agree: what an image installs is what the tests ran with."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _pins(name: str) -> dict[str, frozenset[str]]:
    """Requirement line (name, version, marker) to its hashes."""
    found: dict[str, frozenset[str]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text()):
        requirement, *hashes = block.replace("\\\n", "\n").split("--hash=")
        found[requirement.strip()] = frozenset(line.strip() for line in hashes)
    return found


@pytest.mark.parametrize(
    "name", ["requirements-slim.lock", "requirements-batch.lock", "requirements-full.lock"]
)
def test_an_image_installs_what_was_tested(name: str) -> None:
    tested, installed = _pins("requirements.lock"), _pins(name)
    # A marker may be wider in a smaller set; version and hashes may not differ.
    versions = {(line.split(" ;")[0], hashes) for line, hashes in tested.items()}
    differing = {line for line, hashes in installed.items() if (line.split(" ;")[0], hashes) not in versions}
    assert not differing


def test_slim_is_a_part_of_batch_and_batch_of_full() -> None:
    slim, batch, full = (_pins(f"requirements-{name}.lock").items() for name in ("slim", "batch", "full"))
    assert slim <= batch <= full


def test_slim_has_no_torch() -> None:
    names = {re.split(r"[=\[]", line)[0] for line in _pins("requirements-slim.lock")}
    assert "openvino" in names
    assert not names & {"torch", "torchvision", "nncf", "triton"}


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "requirements-slim.lock",
        "requirements-batch.lock",
        "requirements-full.lock",
        "tests/contract/kserve.lock",
    ],
)
def test_every_pin_has_a_hash_and_none_an_address(name: str) -> None:
    assert all(_pins(name).values())
    assert "://" not in (ROOT / name).read_text()
