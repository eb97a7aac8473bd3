"""web: https with a private authority, and through a proxy; stores likewise."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pthserve.errors import WeightsError
from pthserve.options import ModelOptions
from pthserve.sources import transfer
from pthserve.sources.fetched import fetched

from .keys import authority
from .proxy import proxy
from .servers import FileServer, s3, serving

CONTENT = random.Random(7).randbytes(10**6)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[FileServer, Path]]:
    """A server with a certificate of a private authority, and the authority's certificate."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.pth").write_bytes(CONTENT)
    certificate, context = authority(tmp_path)
    with serving(FileServer(folder), context) as server:
        yield server, certificate


@pytest.fixture
def options(tmp_path: Path) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path / "cache")


def test_an_unknown_authority_is_told_at_once(secure: tuple[FileServer, Path], options: ModelOptions) -> None:
    with pytest.raises(WeightsError, match="the authority's certificate in SSL_CERT_FILE"):
        fetched(f"{secure[0].url}/a.pth", options)


def test_a_private_authority_is_named_in_the_usual_variable(
    secure: tuple[FileServer, Path], options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure[1]))
    assert fetched(f"{secure[0].url}/a.pth", options).read_bytes() == CONTENT


def test_https_goes_through_the_proxy_of_the_usual_variable(
    secure: tuple[FileServer, Path], options: ModelOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure[1]))
    with proxy() as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", address)
        assert fetched(f"{secure[0].url}/a.pth", options).read_bytes() == CONTENT
        assert asked == [f"CONNECT {secure[0].url.removeprefix('https://')} HTTP/1.1"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        fetched(f"{secure[0].url}/a.pth", options)
        assert len(asked) == 1


@pytest.mark.slow
def test_a_store_is_reached_with_a_private_authority_and_through_a_proxy(
    options: ModelOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3" / "models").mkdir(parents=True)
    (tmp_path / "s3" / "models" / "a.pth").write_bytes(CONTENT)
    certificate, _ = authority(tmp_path)
    monkeypatch.setattr(transfer, "PAUSES", (0,))
    own = ("--cert", str(tmp_path / "server.pem"), "--key", str(tmp_path / "server.pem"))
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        s3(tmp_path / "s3", tmp_path / "s3.log", "key", "secret", *own) as endpoint,
        proxy() as (address, asked),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(WeightsError, match="cannot be downloaded"):
            fetched("s3://models/a.pth", options)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("HTTPS_PROXY", address)
        assert fetched("s3://models/a.pth", options).read_bytes() == CONTENT
        assert asked[0] == f"CONNECT {endpoint.removeprefix('https://')} HTTP/1.1"
