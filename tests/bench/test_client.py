"""The load generator's client: HTTP as servers expect it."""

import asyncio
import base64
from pathlib import Path

import pytest

from pthserve.bench.client import Connection, ConnectionFailed, Pool, Target

from .conftest import Service

IMAGE = b"\xff\xd8 not quite a JPEG \r\n\r\n--"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(IMAGE)
    return path


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, "/predict"),
        ("127.0.0.1:8000/", "127.0.0.1", 8000, "/predict"),
        ("http://[::1]:9/v2/models/x/infer?top=3", "::1", 9, "/v2/models/x/infer?top=3"),
        ("https://example.test/predict", "example.test", 443, "/predict"),
    ],
)
def test_an_address_without_a_path_means_predict(url: str, host: str, port: int, path: str) -> None:
    target = Target.parse(url)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:99999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|[Pp]ort"):
        Target.parse(url)


def ask(target: Target, requests: list[bytes], count: int) -> list[int]:
    async def run() -> list[int]:
        pool = Pool(target, requests, 2)
        try:
            return [await pool.ask(10) for _ in range(count)]
        finally:
            pool.close()

    return asyncio.run(run())


def test_credentials_in_the_address_are_sent_as_basic_authentication_and_nowhere_else(
    service: Service, image: Path
) -> None:
    target = Target.parse(service.url.replace("//", "//us%40er:pass%3Aword@"))
    assert ask(target, [target.request(image)], 1) == [200]
    assert service.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"us@er:pass:word").decode()
    assert service.headers[0]["Host"] == service.url.removeprefix("http://")
    assert "word" not in repr(target)


def test_a_given_host_and_authorization_replace_the_address_s(service: Service, image: Path) -> None:
    target = Target.parse(service.url.replace("//", "//user:word@"))
    headers = [(b"host", b"cats.example"), (b"AUTHORIZATION", b"Bearer x")]
    assert ask(target, [target.request(image, headers)], 1) == [200]
    assert {"host": "cats.example", "AUTHORIZATION": "Bearer x"}.items() <= service.headers[0].items()
    assert not {"Host", "Authorization"} & service.headers[0].keys()


def test_the_image_arrives_as_the_form_field_image(service: Service, image: Path) -> None:
    target = Target.parse(service.url)
    assert ask(target, [target.request(image, [(b"X-Key", b"abc")])], 1) == [200]
    assert service.parts(0) == {"image": IMAGE}
    assert service.headers[0]["X-Key"] == "abc"
    assert service.paths == ["/predict"]


def test_the_image_arrives_raw_where_that_is_asked_for(service: Service, image: Path) -> None:
    target = Target.parse(service.url)
    assert ask(target, [target.request(image, raw=True)], 1) == [200]
    assert service.bodies == [IMAGE]
    assert service.headers[0]["Content-Type"] == "image/jpeg"


def test_a_connection_is_kept(service: Service, image: Path) -> None:
    target = Target.parse(service.url)
    assert ask(target, [target.request(image)], 5) == [200] * 5
    assert service.connections == 1


def test_the_images_are_sent_in_turn(service: Service, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(b"other")
    target = Target.parse(service.url)
    ask(target, [target.request(path, raw=True) for path in (image, other)], 4)
    assert service.bodies == [IMAGE, b"other"] * 2


async def test_a_cut_connection_is_said_and_not_used_again(service: Service, image: Path) -> None:
    target = Target.parse(service.url)
    request = target.request(image)

    service.status = 0
    connection = await Connection.open(target)
    with pytest.raises(ConnectionFailed, match="closed"):
        await connection.ask(request)
    assert not connection.usable
    with pytest.raises(ConnectionFailed, match="closed"):
        await connection.ask(request)


def test_a_port_that_nobody_listens_on_is_said(image: Path) -> None:
    target = Target.parse("http://127.0.0.1:1")
    with pytest.raises(ConnectionFailed, match=r"refused|failed"):
        ask(target, [target.request(image)], 1)
