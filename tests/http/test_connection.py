"""Clients that are slow, long-winded, or speak no HTTP."""

import time
from collections.abc import Iterator

import pytest

from pthserve.http import connection

from ..serving.squares import png
from .conftest import Service, serving, until
from .wire import closed, connect, exchange, head, read


@pytest.fixture(scope="module")
def impatient() -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEAD_SECONDS", 0.3)
        with serving() as service:
            yield service


def test_headers_that_come_too_slowly_are_told_and_hung_up_on(impatient: Service) -> None:
    with connect(impatient) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\n")
        reply = read(slow)
        assert reply.code == 408
        assert reply.error
        assert closed(slow)


def test_a_drop_now_and_then_does_not_help(impatient: Service) -> None:
    with connect(impatient) as slow:
        began = time.monotonic()
        try:
            for character in head("GET", "/livez", filler="x" * 1000):
                slow.sendall(bytes([character]))
                time.sleep(0.02)
        except OSError:
            pass
        assert time.monotonic() - began < 15


def test_a_client_that_says_nothing_is_hung_up_on(impatient: Service) -> None:
    with connect(impatient) as silent:
        assert closed(silent)


def test_a_client_that_only_sends_line_breaks_is_hung_up_on(impatient: Service) -> None:
    with connect(impatient) as empty:
        empty.sendall(b"\r\n\r\n")
        assert closed(empty)


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(impatient: Service) -> None:
    with connect(impatient) as slow:
        slow.sendall(head(content_type="image/png", content_length=100_000_000) + b"x")
        assert read(slow).code == 413
        assert closed(slow)


def test_an_idle_connection_between_two_requests_is_kept(impatient: Service) -> None:
    with connect(impatient) as idle:
        for pause in (1.0, 0.0):
            idle.sendall(head("GET", "/livez"))
            assert read(idle).code == 200
            time.sleep(pause)


def test_a_slow_answer_is_no_slow_request(impatient: Service) -> None:
    body = png()
    with connect(impatient) as slow:
        slow.sendall(head(content_type="image/png", content_length=len(body)) + body[:-1])
        time.sleep(1.0)
        slow.sendall(body[-1:])
        assert read(slow).code == 200


@pytest.mark.parametrize(
    "request_head",
    [
        head("GET", "/livez", big="x" * 100_000),
        head("GET", "/livez", **{f"name{number}": "x" * 100 for number in range(1000)}),
        head("GET", "/" + "x" * 100_000),
    ],
    ids=["one header", "many headers", "the path"],
)
def test_headers_that_are_too_large_are_told(service: Service, request_head: bytes) -> None:
    reply = exchange(service, request_head)
    assert reply.code == 431
    assert reply.error


def test_a_header_without_end_is_cut_off(service: Service) -> None:
    with connect(service) as endless:
        endless.sendall(b"GET /livez HTTP/1.1\r\nendless: ")
        try:
            for _ in range(100):
                endless.sendall(b"x" * 10_000)
        except OSError:
            return
        assert b" 431 " in endless.recv(65536)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: 9999999999999999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /livez HTTP/1.1\r\na: b\x00c\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so(service: Service, nonsense: bytes) -> None:
    before = service.metric('pthserve_requests_total{code="400",route="unparsed"}')
    reply = exchange(service, nonsense)
    assert 400 <= reply.code < 500
    assert reply.error
    if reply.code == 400 and reply.headers.get("x-request-id") is None:
        until(lambda: service.metric('pthserve_requests_total{code="400",route="unparsed"}') == before + 1)


@pytest.mark.parametrize(
    "upgrade",
    [
        {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec_websocket_key": "x",
            "sec_websocket_version": 13,
        },
        {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AA"},
    ],
)
def test_an_upgrade_is_not_taken(service: Service, upgrade: dict[str, object]) -> None:
    assert exchange(service, head("GET", "/livez", **upgrade)).code == 200
