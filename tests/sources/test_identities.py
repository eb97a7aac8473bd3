"""Identities of workloads: a model from a store, with credentials that a token service hands out."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ..packs import tiny_pack
from ..running import running
from .identities import IDENTITIES, REASON, Identity

pytestmark = pytest.mark.slow

CONTENT = b"the weights of cats" * 1000


@pytest.fixture(scope="module", params=IDENTITIES, ids=[make.__name__ for make in IDENTITIES])
def identity(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    make: Callable[[Path], AbstractContextManager[Identity]] = request.param
    folder = tmp_path_factory.mktemp("identity")
    with make(folder) as identity:
        identity.store.put("a.pth", CONTENT)
        identity.store.put_folder("cats", tiny_pack(folder / "cats").folder)
        yield identity


def fetch(
    identity: Identity, folder: Path, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """`pthserve fetch` in a pod that has nothing but its identity."""
    program = (
        "from pthserve.sources import transfer; transfer.PAUSES = (0,); "
        "from pthserve.cli.main import main; main()"
    )
    command = (
        sys.executable,
        "-c",
        program,
        "fetch",
        identity.store.address("a.pth"),
        "-o",
        folder / "a.pth",
    )
    done = subprocess.run(
        [*command, "--log-level", "debug"],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not secrets_in(done.stdout + done.stderr, identity)
    return done


def secrets_in(text: str, identity: Identity) -> list[str]:
    return [line for line in text.splitlines() if any(secret in line for secret in identity.secrets)]


def test_the_identity_is_enough(identity: Identity, tmp_path: Path) -> None:
    identity.service.requests.clear()
    done = fetch(identity, tmp_path, identity.environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert identity.service.requests
    assert not [target for target in identity.service.requests if "//" in target]


def test_an_identity_that_the_token_service_refuses_is_told(identity: Identity, tmp_path: Path) -> None:
    done = fetch(identity, tmp_path, {**identity.environment, **identity.refused})
    assert done.returncode == 3
    assert REASON in done.stderr
    assert "the identity of the workload" in done.stderr
    assert not (tmp_path / "a.pth").exists()


def test_an_identity_that_the_store_refuses_is_told(identity: Identity, tmp_path: Path) -> None:
    done = fetch(identity, tmp_path, {**identity.environment, **identity.poor})
    assert done.returncode == 3
    assert "the store refuses access" in done.stderr
    assert not (tmp_path / "a.pth").exists()


def test_a_service_has_it_and_says_nothing_of_it(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in identity.environment.items():
        monkeypatch.setenv(name, value)
    flags = ("--cache-dir", str(tmp_path / "cache"), "--log-level", "debug")
    with running(identity.store.address("cats"), tmp_path / "log", *flags) as service:
        assert service.client.post("/v2/repository/models/zoo/load").status_code == 200
        said = [service.client.get(path).text for path in ("/info", "/metrics", "/readyz", "/v2/models/zoo")]
    said.append((tmp_path / "log").read_text())
    kept = [file.read_bytes().decode(errors="replace") for file in (tmp_path / "cache").rglob("*.json")]
    assert not secrets_in("\n".join(said + kept), identity)
