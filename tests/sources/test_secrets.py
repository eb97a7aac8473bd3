"""Credentials of each source: in no log, no error, no /info and no metric."""

import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pthserve.cli.push import push
from pthserve.errors import WeightsError

from ..packs import tiny_pack
from ..running import running
from . import hub_server
from .servers import FileServer, registry, s3, serving
from .test_registry import PASSWORD

pytestmark = pytest.mark.slow

MARK = "secretpassword"
"""In every credential, so that one search finds all."""
FORMS = (MARK, base64.b64encode(f"user:{MARK}".encode()).decode(), MARK[::-1])


@dataclass
class Source:
    """An address, and the environment with its credentials; wrong: what makes them wrong."""

    address: str
    environment: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def web(folder: Path) -> Iterator[Source]:
    model = tiny_pack(folder / "served" / "cats").folder
    with serving(FileServer(folder / "served", authorization=f"Bearer {MARK}")) as server:
        address = server.url.replace("//", f"//user:{MARK}@")
        yield Source(
            f"{address}/{model.name}/model.xml?X-Amz-Signature={MARK}#{MARK}",
            {"PTHSERVE_FETCH_AUTHORIZATION": f"Bearer {MARK}"},
            {"PTHSERVE_FETCH_AUTHORIZATION": f"Bearer {MARK}-wrong"},
        )


@contextlib.contextmanager
def store(folder: Path) -> Iterator[Source]:
    tiny_pack(folder / "s3" / "models" / "cats")
    with s3(folder / "s3", folder / "s3.log", "key", MARK) as endpoint:
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": MARK,
        }
        yield Source("s3://models/cats", environment, {"AWS_SECRET_ACCESS_KEY": f"{MARK}-wrong"})


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[Source]:
    tiny_pack(folder / "hub" / "team" / "cats")
    with hub_server.serving(hub_server.Hub(folder / "hub", token=f"hf_{MARK}")) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": f"hf_{MARK}", "HF_HOME": str(folder / "home")}
        yield Source("hf://team/cats", environment, {"HF_TOKEN": f"hf_{MARK}_wrong"})


@contextlib.contextmanager
def artefacts(folder: Path) -> Iterator[Source]:
    (folder / "users").write_text(f"user:{PASSWORD}\n")
    with registry(folder, folder / "users") as host:
        environments = []
        for name, password in (("right", MARK), ("wrong", f"{MARK}-wrong")):
            (folder / name).mkdir()
            auth = base64.b64encode(f"user:{password}".encode()).decode()
            (folder / name / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
            environments.append({"DOCKER_CONFIG": str(folder / name)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_CONFIG", str(folder / "right"))
            address = push(tiny_pack(folder / "cats").folder, f"oci://{host}/cats:v1")
        yield Source(address, *environments)


def _is_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if any(form in line for form in FORMS)]


@pytest.mark.parametrize("make", [store, hub, artefacts])
def test_a_service_says_nothing_of_the_credentials_of_its_source(
    make: Callable[[Path], contextlib.AbstractContextManager[Source]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with make(tmp_path) as source:
        for name, value in source.environment.items():
            monkeypatch.setenv(name, value)
        flags = ("--cache-dir", str(tmp_path / "cache"), "--log-level", "debug")
        with running(source.address, tmp_path / "log", *flags) as service:
            assert service.client.post("/v2/repository/models/zoo/load").status_code == 200
            said = [
                service.client.get(path).text for path in ("/info", "/metrics", "/readyz", "/v2/models/zoo")
            ]
        said.append((tmp_path / "log").read_text())
        kept = [file.read_bytes().decode(errors="replace") for file in (tmp_path / "cache").rglob("*.json")]
        assert not _is_in("\n".join(said + kept))


@pytest.mark.parametrize("make", [web, store, hub, artefacts])
@pytest.mark.parametrize(
    ("command", "case"),
    [
        ("fetch", "wrong credentials"),
        ("fetch", "not there"),
        ("fetch", "no server"),
        ("serve", "wrong credentials"),
        ("inspect", "no server"),
    ],
)
def test_no_error_says_anything_of_the_credentials(
    command: str,
    case: str,
    make: Callable[[Path], contextlib.AbstractContextManager[Source]],
    tmp_path: Path,
) -> None:
    with make(tmp_path) as source:
        environment, address = source.environment, source.address
        if case == "wrong credentials":
            environment = environment | source.wrong
        elif case == "not there":
            address = address.replace("cats", "dogs")
        done = _run(command, address, tmp_path, environment) if case != "no server" else None
    done = done or _run(command, address, tmp_path, environment)
    assert done.returncode == 3, done.stderr
    assert "WeightsError: " in done.stderr  # with its traceback, as the level is `debug`
    assert not _is_in(done.stdout + done.stderr)


def _run(
    command: str, address: str, folder: Path, environment: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    options = {"fetch": ["-o", str(folder / "out")], "serve": ["--port", "0"], "inspect": []}[command]
    # Pauses between attempts are for servers that come back.
    program = (
        "from pthserve.sources import transfer; transfer.PAUSES = (0,); "
        "from pthserve.cli.main import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, command, address, *options, "--log-level", "debug"],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("address", "environment"),
    [
        (
            "az://models/a.pth",
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={MARK}",
                "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1",
            },
        ),
        (
            "az://models/a.pth",
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_ACCOUNT_KEY": MARK,
                "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1",
            },
        ),
        (
            "gs://models/a.pth",
            {
                "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
                    {"private_key": MARK, "private_key_id": "1", "client_email": "a"}
                ),
                "GOOGLE_BASE_URL": "http://127.0.0.1:1",
            },
        ),
    ],
)
def test_no_error_of_a_store_says_anything_of_its_credentials(
    address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = _run("fetch", address, tmp_path, environment)
    assert done.returncode == 3
    assert address in done.stderr
    assert not _is_in(done.stdout + done.stderr)


def test_the_search_finds_what_is_there() -> None:
    assert _is_in(f"a\nAuthorization: Basic {FORMS[1]}\nb {MARK}") != []
    with pytest.raises(WeightsError):
        raise WeightsError(MARK)
