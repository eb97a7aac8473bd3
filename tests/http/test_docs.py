"""docs/api.md is what the service does."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pthserve.access.outcomes import STATUS

from ..http_service import Service
from ..serving.squares import png

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)


def test_the_page_lists_the_plain_routes_that_there_are(service: Service) -> None:
    listed = set(re.findall(r"^\| `([A-Z]+) (/\S+)` \|", PAGE, re.MULTILINE))
    paths = service.client.get("/openapi.json").json()["paths"]
    there = {
        (method.upper(), path)
        for path, operations in paths.items()
        if not path.startswith("/v2")
        for method in operations
    }
    assert listed == there


def test_the_page_lists_every_status_that_an_error_has() -> None:
    listed = set(map(int, re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)))
    assert set(STATUS.values()) | {405, 431} == listed


def test_the_page_lists_the_fields_of_an_answer(service: Service) -> None:
    table = PAGE.partition("| field |")[2].partition("\n\n")[0]
    listed = {
        field
        for line in table.splitlines()
        if line.startswith("| `")
        for field in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert listed == service.client.post("/predict", files={"image": png()}).json().keys()


def test_there_are_commands() -> None:
    assert COMMANDS


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(service: Service, tmp_path: Path, command: str) -> None:
    (tmp_path / "red.png").write_bytes(png())
    arguments = shlex.split(command.replace("http://127.0.0.1:8000", service.url))
    done = subprocess.run([*arguments, "--silent", "--fail"], cwd=tmp_path, capture_output=True, check=True)
    said = json.loads(done.stdout)
    assert {answer["label"] for answer in said.get("predictions", [said])} == {"red"}
