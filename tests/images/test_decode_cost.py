"""No file costs more to decode than its header says, nor than SECURITY.md says."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.images.costly import KINDS, LIMIT

from pthserve.images.cost import FIXED
from pthserve.images.decode import SLOW_PIXELS, WEBP_PIXELS
from pthserve.settings import Settings

from ..shared import with_long

ROOT = Path(__file__).parents[2]
TABLE = {
    name: (float(memory), float(seconds))
    for name, memory, seconds in re.findall(
        r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE
    )
}
FORMATS = with_long(sorted({kind.split()[0] for kind in KINDS}), ("PNG", "TIFF", "WebP"))
EASY = 0.2
"""Seconds that the machine takes for the easy file which the table's seconds were measured on."""


@cache
def costs(name: str) -> tuple[float, list[dict[str, Any]]]:
    """How many times slower this machine is than the table's, and what each file of a format took."""
    command = [sys.executable, "-m", "tests.images.costly", name]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    easy, *files = map(json.loads, ran.stdout.splitlines())
    return max(1.0, easy / EASY), files


def row(kind: str) -> str:
    """The table's row for a file of this kind."""
    for name in ("JPEG progressive", "BMP run lengths"):
        if kind.startswith(name) or (kind == "JPEG arithmetic, progressive" and name == "JPEG progressive"):
            return name
    return kind.split()[0]


def test_the_table_has_a_row_for_each_format() -> None:
    assert TABLE.keys() == {row(kind) for kind in KINDS}


def test_an_image_as_large_as_may_be_fits_into_the_memory_for_decoding() -> None:
    defaults = Settings()
    assert defaults.max_pixels == LIMIT
    for name, (memory, _) in TABLE.items():
        pixels = {"WebP": WEBP_PIXELS, "BMP run lengths": SLOW_PIXELS}.get(name, LIMIT)
        assert memory * pixels + 2 * defaults.max_body + FIXED <= defaults.decode_memory, name


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_no_file_takes_more_memory_than_its_header_and_the_table_say(name: str) -> None:
    _, files = costs(name)
    decoded = [one for one in files if "refused" not in one]
    assert decoded
    for one in decoded:
        assert one["memory"] <= one["memory_at_most"], one
        reserved = one["memory_at_most"] - FIXED - 2 * one["length"]
        assert reserved <= TABLE[row(one["kind"])][0] * one["pixels"], one


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_no_file_takes_more_cpu_than_its_header_and_the_table_say(name: str) -> None:
    slower, files = costs(name)
    for one in files:
        assert one["seconds"] <= 2 * slower * TABLE[row(one["kind"])][1], one
        if "refused" not in one:
            assert one["seconds_at_most"] <= TABLE[row(one["kind"])][1], one
