"""The pages that a person reads are true: their commands run, their tables are the code's."""

import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "node_modules", "artifacts"} & set(path.relative_to(ROOT).parts)
)


def commands(page: str) -> list[str]:
    """The shell commands that a page shows."""
    return [
        line.strip().removeprefix("$ ")
        for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line.strip().startswith("$ ")
    ]


def test_the_table_of_settings_is_the_codes() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "settings_table.py"))["table"]()
    assert (ROOT / "docs" / "settings.md").read_text() == page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_make_target_is_a_line_of_its_help() -> None:
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert re.findall(r"^make (\S+)", shown, re.MULTILINE) == phony[1].split()


@pytest.mark.slow
def test_the_readmes_request_gets_the_readmes_answer(demo: str) -> None:
    curl = next(command for command in commands(README) if command.startswith("curl"))
    said = subprocess.run(
        ["curl", "-sS", *shlex.split(curl.replace("http://127.0.0.1:8000", demo))[1:]],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    told = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0])
    answer = json.loads(said)
    assert {key: answer[key] for key in ("class_index", "label")} == {
        key: told[key] for key in ("class_index", "label")
    }
    assert [best["label"] for best in answer["top"]] == [best["label"] for best in told["top"]]
    probabilities = [best["probability"] for best in answer["top"]]
    if httpx.get(f"{demo}/info").json()["precision"] == "bf16":
        at_bf16 = re.search(r"runs bf16 the probability is (0\.\d+)\)", README)
        assert at_bf16
        assert probabilities[0] == pytest.approx(float(at_bf16[1]), abs=0.005)
    else:
        assert probabilities == pytest.approx([best["probability"] for best in told["top"]], abs=0.001)
    assert len(answer["probabilities"]) == 1000


@pytest.mark.slow
def test_make_serve_is_the_first_command_and_serves_what_it_is_given(digits: Path) -> None:
    """`make -n` says what would run: the service itself is run by the other tests."""
    assert commands(README)[0] == "make serve"
    own = next(command for command in commands(README) if "MODEL=" in command)
    dry = subprocess.run(
        ["make", "-n", *shlex.split(own)[1:]],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "pthserve serve path/to/model.pth" in dry
    assert "weights/" not in dry, "a model of one's own needs none of the demos"


@pytest.mark.parametrize("demo", ["digits", "textures"])
def test_make_serve_of_a_demo_trains_it_first_and_no_other(demo: str) -> None:
    """`-W`: as if the script were new, so that it does not matter whether the weights are there."""
    dry = subprocess.run(
        ["make", "-n", "-W", f"weights/{demo}/train.py", "serve", f"MODEL=weights/{demo}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert re.findall(r"(\S+/train\.py|pthserve serve .*)", dry) == [
        f"weights/{demo}/train.py",
        f"pthserve serve weights/{demo}",
    ]
