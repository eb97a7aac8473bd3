"""docs/api-v2.md is what the service does."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.apart import environment
from tests.http_service import Service, serving
from tests.serving.squares import png

from pthserve import errors
from pthserve.access.outcomes import status
from pthserve.grpc.message_limits import MAX_PARTS
from pthserve.grpc.procedures import CALLS
from pthserve.grpc.status_codes import code
from pthserve.http.json_numbers import MAX_BYTES

PAGE = (Path(__file__).parents[2] / "docs" / "api-v2.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
ANSWERS = re.findall(r"```console\n\$ ([^\n]+)\n```\n\n```json\n(.+?)```", PAGE, re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(grpc_port=0) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(png())
    return tmp_path


def placed(text: str, service: Service) -> str:
    """`text` with the addresses of `service`."""
    ports = {"127.0.0.1:8000": service.server.ports["http"], "127.0.0.1:8001": service.server.ports["grpc"]}
    for address, port in ports.items():
        text = text.replace(address, f"127.0.0.1:{port}")
    return text


def run(command: str, service: Service, folder: Path) -> str:
    command = placed(command, service).replace("curl ", "curl --silent --show-error --fail ")
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_work_and_answer_what_the_page_says(service: Service, folder: Path) -> None:
    shown = dict(ANSWERS)
    said = {command: run(command, service, folder) for command in COMMANDS}
    assert len(shown) == 2
    for command, answer in said.items():
        if command in shown:
            close(json.loads(answer), json.loads(shown[command]))
        elif "/infer" in command:
            assert answer == said[next(iter(shown))]
        elif command.startswith("curl"):
            assert json.loads(answer)


def close(answer: Any, shown: Any) -> None:
    """Assert that they are equal, but for what rounding takes from numbers."""
    if isinstance(shown, dict):
        assert answer.keys() == shown.keys()
        for name, value in shown.items():
            close(answer[name], value)
    elif isinstance(shown, list):
        for one, another in zip(answer, shown, strict=True):
            close(one, another)
    else:
        assert answer == (shown if isinstance(shown, str) else pytest.approx(shown, abs=1e-3))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=["triton-http", "triton-grpc", "kserve"])
def test_a_program_prints_what_its_comments_say(service: Service, folder: Path, program: str) -> None:
    python = environment("kserve.lock") if "kserve" in program else sys.executable
    done = subprocess.run(
        [python, "-c", placed(program, service)], cwd=folder, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.+)$", program, re.MULTILINE)


def test_the_tables_list_what_the_model_takes_and_gives(service: Service) -> None:
    told = service.client.get("/v2/models/squares").json()
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| `(\[.*?\])` \|", PAGE, re.MULTILINE)
    assert listed == [
        (tensor["name"], tensor["datatype"], json.dumps(tensor["shape"]))
        for tensor in told["inputs"] + told["outputs"]
    ]


def test_the_table_lists_the_routes_that_there_are(service: Service) -> None:
    listed = set(re.findall(r"^\| `([A-Z]+) (/v2\S*)` \|", PAGE, re.MULTILINE))
    there = {
        (method.upper(), path)
        for path, operations in service.client.get("/openapi.json").json()["paths"].items()
        if path.startswith("/v2") and "{version}" not in path
        for method in operations
    }
    assert listed == there


def test_the_page_lists_the_procedures_that_there_are() -> None:
    section = PAGE.partition("## gRPC\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"`((?:Server|Model|Repository)\w+)`", section)) == CALLS.keys()


def kinds(kind: type[errors.PthserveError]) -> Iterator[type[errors.PthserveError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_the_table_pairs_the_codes_with_the_statuses() -> None:
    table = re.findall(r"^\| ([A-Z_]+) \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    listed = {(int(number), name) for name, numbers in table for number in numbers.split(", ")}
    raised = [kind.__new__(kind) for kind in kinds(errors.PthserveError)]
    assert listed == {(status(error), code(error).name) for error in raised}


def test_the_page_gives_the_bounds() -> None:
    assert f"more than {MAX_BYTES >> 10} KiB" in PAGE
    assert f"more than {MAX_PARTS:,} parts" in PAGE
