"""Credentials of each source: in no log, no error, no /info and no metric."""

import base64
import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from pthserve.cli.push import push

from ..packs import tiny_pack
from ..running import running
from . import hub_server
from .servers import FileServer, registry, serving
from .stores import SECRET as MARK
from .stores import STORES, Store, azure
from .test_registry import PASSWORD

pytestmark = pytest.mark.slow

FORMS = (MARK, base64.b64encode(f"user:{MARK}".encode()).decode())


@dataclass
class Source:
    """An address, and the environment with its credentials.

    wrong: what makes them wrong. secrets: what of both nobody may see.
    """

    address: str
    environment: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = FORMS

    def is_in(self, text: str) -> list[str]:
        """The lines with a secret."""
        return [line for line in text.splitlines() if any(secret in line for secret in self.secrets)]


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


def bucket(
    make: Callable[[Path], contextlib.AbstractContextManager[Store]],
) -> Callable[[Path], contextlib.AbstractContextManager[Source]]:
    @contextlib.contextmanager
    def source(folder: Path) -> Iterator[Source]:
        with make(folder) as store:
            store.put_folder("cats", tiny_pack(folder / "cats").folder)
            yield Source(store.address("cats"), store.environment, store.wrong, store.secrets)

    return source


BUCKETS = [pytest.param(bucket(make), id=make.__name__) for make in STORES]


@contextlib.contextmanager
def signed(folder: Path) -> Iterator[Source]:
    """An object of Azure with a signature that allows to read it, in place of the account's key."""
    import obstore
    from obstore.store import AzureStore

    name = "AZURE_STORAGE_SAS_TOKEN"
    with azure(folder) as store:
        store.put("cats.xml", b"<model/>")
        connection = store.connected()
        assert isinstance(connection, AzureStore)
        url = obstore.sign(connection, "GET", "cats.xml", datetime.timedelta(hours=1))
        query = urlsplit(url).query
        signature = dict(parse_qsl(query))["sig"]
        environment = {**store.environment, name: query}
        del environment["AZURE_STORAGE_ACCOUNT_KEY"]
        wrong = {name: query.replace("sig=", "sig=0000")}
        secrets = (signature, quote(signature, safe=""))
        yield Source(store.address("cats.xml"), environment, wrong, secrets)


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
        for name, password in (("right", MARK), ("wrong", f"{MARK}-wrong")):
            (folder / name).mkdir()
            auth = base64.b64encode(f"user:{password}".encode()).decode()
            (folder / name / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_CONFIG", str(folder / "right"))
            address = push(tiny_pack(folder / "cats").folder, f"oci://{host}/cats:v1")
        right, wrong = ({"DOCKER_CONFIG": str(folder / name)} for name in ("right", "wrong"))
        yield Source(address, right, wrong)


@pytest.mark.parametrize("make", [*BUCKETS, hub, artefacts])
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
        assert not source.is_in("\n".join(said + kept))


def test_a_signature_is_enough_for_an_object_of_azure(tmp_path: Path) -> None:
    with signed(tmp_path) as source:
        done = _run("fetch", source.address, tmp_path, source.environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == b"<model/>"
    assert not source.is_in(done.stdout + done.stderr)


@pytest.mark.parametrize("make", [web, *BUCKETS, signed, hub, artefacts])
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
            environment = {**environment, **source.wrong}
        elif case == "not there":
            address = address.replace("cats", "dogs")
        done = _run(command, address, tmp_path, environment) if case != "no server" else None
    done = done or _run(command, address, tmp_path, environment)
    assert done.returncode == 3, done.stderr
    assert "WeightsError: " in done.stderr  # with its traceback, as the level is `debug`
    assert not source.is_in(done.stdout + done.stderr)


def _run(
    command: str, address: str, folder: Path, environment: Mapping[str, str]
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
def test_no_error_says_anything_of_credentials_that_are_malformed(
    address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = _run("fetch", address, tmp_path, environment)
    assert done.returncode == 3
    assert address in done.stderr
    assert not Source(address).is_in(done.stdout + done.stderr)


def test_the_search_finds_what_is_there() -> None:
    text = f"a\nAuthorization: Basic {FORMS[1]}\nb {MARK}"
    assert Source("").is_in(text) == text.splitlines()[1:]
