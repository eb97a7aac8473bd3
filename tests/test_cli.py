"""The command line: what it offers, what it imports, how it ends."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from pthserve.cli.main import COMMANDS
from pthserve.settings import Settings

pytestmark = pytest.mark.slow

HEAVY = ("torch", "torchvision", "openvino", "fastapi", "numpy", "pydantic", "PIL", "httpx", "nncf")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pthserve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def imported(*arguments: str) -> set[str]:
    """The modules that are there after `pthserve *arguments` has ended."""
    code = (
        "import sys, pthserve.cli.main as cli\n"
        "sys.argv = ['pthserve', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('imported', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.rsplit("imported", 1)[1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("bench", "--help"), ("fetch", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    allowed = {"bench": {"numpy"}, "fetch": {"pydantic"}}.get(arguments[0], set())
    assert not imported(*arguments) & (set(HEAVY) - allowed)


@pytest.mark.parametrize("command", ["serve", "inspect", "predict"])
def test_a_command_s_help_imports_no_engine(command: str) -> None:
    assert not imported(command, "--help") & {"torch", "torchvision", "openvino", "fastapi", "numpy"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_the_list_of_commands_says(command: str) -> None:
    assert COMMANDS[command] in run(command, "--help").stdout


def settings() -> Iterator[str]:
    return (name for name in Settings.model_fields if name != "model")


def test_every_setting_is_an_option_of_serve() -> None:
    shown = run("serve", "--help", COLUMNS="300").stdout
    for name in settings():
        assert f"--{name.replace('_', '-')} " in shown


def test_the_help_of_serve_says_each_setting_s_description() -> None:
    shown = " ".join(run("serve", "--help", COLUMNS="400").stdout.split())
    for name in settings():
        assert Settings.model_fields[name].description in shown


# --- how it ends ------------------------------------------------------------------------------------------


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("serve", "--nonsense"),
        ("serve", "--port", "many"),
        ("serve", "--port", "70000"),
        ("serve", "--deadline", "inf"),
        ("serve", "--drain-seconds", "nan"),
        ("serve", "--max-body", str(10**18)),
        ("serve", "--max-inflight", "9" * 5000),
        ("serve", "--allowed-hosts", "http://cats.example"),
        ("serve", "--engine", "steam"),
        ("predict", "demo"),
        ("predict", "demo", "no-such-file.jpg"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_wrong_usage_names_flag_and_variable() -> None:
    assert "--port (PTHSERVE_PORT)" in run("serve", "--port", "70000").stderr
    assert "--deadline (PTHSERVE_DEADLINE)" in run("serve", PTHSERVE_DEADLINE="inf").stderr
    assert "--max-batch" in run("serve", PTHSERVE_MAX_BATCH="many").stderr


@pytest.mark.parametrize("variable", ["PTHSERVE_GRPC_PORT", "PTHSERVE_MAX_BATCH"])
@pytest.mark.parametrize("value", ["", "nonsense"])
def test_a_command_reads_no_setting_that_it_has_no_option_for(variable: str, value: str) -> None:
    done = run("inspect", "no-such-model.pth", **{variable: value})
    assert done.returncode == 3
    assert "no-such-model.pth" in one_line(done)


def test_a_flag_beats_the_environment(tmp_path: Path) -> None:
    given = {"PTHSERVE_SHA256": "0" * 64}
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(3)}, path)
    assert f"{'0' * 64} is expected" in run("inspect", path, **given).stderr
    assert f"{'1' * 64} is expected" in run("inspect", path, "--sha256", "1" * 64, **given).stderr


def test_a_model_that_is_not_there_exits_with_3_in_one_line() -> None:
    done = run("inspect", "no-such-model.pth")
    assert done.returncode == 3
    assert "no-such-model.pth" in one_line(done)


@pytest.mark.slow
def test_a_model_that_fits_nothing_exits_with_3_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"layer.weight": torch.zeros(3, 3)}, path)
    done = run("serve", path, "--port", "0")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("pthserve: ")
    assert "Traceback" not in done.stderr


def test_at_level_debug_there_is_a_traceback() -> None:
    done = run("inspect", "no-such-model.pth", "--log-level", "debug")
    assert "Traceback" in done.stderr
    assert "no-such-model.pth" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_golden_images_that_disagree_exit_with_4(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "digits.pth").symlink_to(digits / "digits.pth")
    shutil.copytree(digits / "golden", tmp_path / "golden")
    card = (
        (digits / "model.yaml")
        .read_text()
        .replace("golden/3.png, class_index: 3", "golden/3.png, class_index: 8")
    )
    (tmp_path / "model.yaml").write_text(card)
    done = run(
        "serve", tmp_path, "--port", "0", "--engine", "torch", "--precision", "fp32", "--tune-budget", "0"
    )
    assert done.returncode == 4
    assert "golden" in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "no-such-model.pth", "--port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in one_line(done)


@pytest.mark.slow
def test_what_takes_torch_says_so_where_it_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), path)
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    done = run("inspect", path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 3
    assert "needs PyTorch, which is not installed" in one_line(done)
