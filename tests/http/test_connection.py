"""Clients that are slow, long-winded, or speak no HTTP."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from pthserve.http import connection
from pthserve.http.parsing import HEAD_BYTES, MAX_HEADERS

from ..http_service import PATIENCE, Service, serving
from ..http_wire import answers, closed, connect, exchange, head, read
from ..serving.squares import png
from ..shared import until


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_idle_connection_between_two_requests_is_kept(impatient: Service) -> None:
    with connect(impatient) as idle:
        for pause in (1.0, 0.0):
            idle.sendall(head("GET", "/livez"))
            assert read(idle).code == 200
            time.sleep(pause)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
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


# --- requests one after another ---------------------------------------------------------------------------


def test_many_short_requests_at_once_are_all_answered(service: Service) -> None:
    """Together their headers are larger than those of one request may be."""
    request = head("GET", "/livez", user_agent="some-client/1.0")
    number = 2 * HEAD_BYTES // len(request)
    with connect(service) as client:
        sender = threading.Thread(
            target=client.sendall, args=(request * number + head("GET", "/livez", connection="close"),)
        )
        sender.start()
        assert answers(client) == [200] * (number + 1)
        sender.join()


@pytest.mark.slow
def test_a_client_that_reads_no_answers_is_read_no_further_and_loses_none(service: Service) -> None:
    request = head("GET", "/livez", filler="x" * 100)
    with connect(service, receive=65536) as client:
        sent = send_until_it_blocks(client, request, 2**25)
        received = b""
        while received.count(b"HTTP/1.1 200") < sent // len(request):
            piece = client.recv(2**20)
            assert piece
            received += piece
        assert service.client.get("/livez").status_code == 200


def send_until_it_blocks(client: socket.socket, request: bytes, most: int) -> int:
    """Send `request` again and again; how many bytes were taken when nothing more was for a second."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.settimeout(1)
    block, sent = request * 100, 0
    try:
        while sent < most:
            sent += client.send(block[sent % len(request) :])
    except TimeoutError:
        return sent
    finally:
        client.settimeout(PATIENCE)
    pytest.fail(f"the service took {sent} bytes of requests whose answers nobody reads")


def sent_until_reset(client: socket.socket, data: bytes) -> int:
    """Send `data` again and again; how many bytes were sent when the service ended the connection."""
    for times in range(2**30 // len(data)):
        try:
            client.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            return times * len(data)
    pytest.fail("the service read 1 GiB")


@pytest.mark.slow
def test_an_answer_that_is_not_taken_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.3)
    with serving() as service, connect(service, receive=4096) as unread:
        sent_until_reset(unread, head("GET", "/metrics") * 100)
        assert service.client.get("/livez").status_code == 200


def test_an_answer_that_is_taken_slowly_is_whole(service: Service) -> None:
    with connect(service, receive=4096) as slow:
        slow.sendall(head("GET", "/openapi.json", connection="close"))
        time.sleep(0.3)
        received = b""
        while piece := slow.recv(4096):
            received += piece
        body = received.partition(b"\r\n\r\n")[2]
        assert orjson.loads(body) == service.client.get("/openapi.json").json()


def test_requests_are_read_however_they_are_cut(service: Service) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    image = png()
    chunks = b"".join(b"%x;a=b\r\n%c\r\n" % (1, byte) for byte in image)
    stream = (
        head(content_type="image/png", content_length=len(image))
        + image
        + head(content_type="image/png", transfer_encoding="chunked")
        + chunks
        + b"0\r\nA: b\r\n\r\n\r\n"
        + head("POST", "/nothing", content_length=9)
        + b"\r\n\r\n\r\n\r\n."
        + head("GET", "/livez", connection="Upgrade", upgrade="h2c")
        + head(content_type="image/png", content_length=len(image), connection="upgrade", upgrade="h2c")
        + image
        + head("GET", "/livez", connection="close")
    )
    for most in (1, 4, 100):
        with connect(service) as whole:
            at = 0
            while at < len(stream):
                size = dice.randint(1, most)
                whole.sendall(stream[at : at + size])
                at += size
            assert answers(whole) == [200, 200, 404, 200, 200, 200]


# --- offers of another protocol ---------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_of_a_request_that_offers_an_upgrade_is_read(service: Service, chunked: bool) -> None:
    """As Java's client and `curl --http2` send it."""
    offer: dict[str, Any] = {
        "content_type": "image/png",
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2_settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    }
    body = png()
    if chunked:
        request = head(**offer, transfer_encoding="chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        request = head(**offer, content_length=len(body)) + body
    with connect(service) as client:
        for _ in range(2):
            client.sendall(request)
            assert read(client).code == 200
        client.sendall(head("GET", "/livez"))
        assert read(client).code == 200


# --- requests that two parsers could read in two ways -----------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("GET /livez HTTP/1.1", 400),
        ("GET /livez HTTP/1.1\r\nhost: a\r\nhost: a", 400),
        ("GET /livez HTTP/1.0\r\nhost: a\r\nhost: b", 400),
        ("GET /livez HTTP/1.0", 200),
        ("GET /livez", 505),
        ("POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked", 501),
        ("POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity, chunked", 501),
        ("POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked", 501),
        ("POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked", 400),
        ("POST /predict HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked", 400),
        (
            "POST /predict HTTP/1.1\r\nhost: [::1]\r\ncontent-type: image/png\r\ntransfer-encoding: Chunked",
            400,
        ),
    ],
)
def test_host_and_transfer_encoding_are_what_the_standard_asks_for(
    service: Service, lines: str, code: int
) -> None:
    reply = exchange(service, f"{lines}\r\n\r\n".encode() + b"0\r\n\r\n" * ("chunked" in lines.lower()))
    assert reply.code == code
    if code != 200:
        assert reply.error


def test_a_key_in_a_trailer_is_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret")
    body = b"%x\r\n%s\r\n0\r\nX-API-Key: secret\r\n\r\n" % (len(png()), png())
    with serving(api_keys=keys) as service:
        request = head(content_type="image/png", transfer_encoding="chunked", trailer="X-API-Key")
        assert exchange(service, request + body).code == 401


def test_too_many_headers_are_told(service: Service) -> None:
    fields = {f"a{number}": "" for number in range(MAX_HEADERS)}
    assert exchange(service, head("GET", "/livez", **fields)).code == 431  # with its Host
    fields.popitem()
    assert exchange(service, head("GET", "/livez", **fields)).code == 200


@pytest.mark.parametrize("filler", [b"a: b\r\n", b"1;" + b"e" * 90 + b"\r\nx\r\n", b"1;" + b"e" * 90])
def test_what_is_around_chunks_has_a_bound(service: Service, filler: bytes) -> None:
    with connect(service) as client:
        client.sendall(head(content_type="image/png", transfer_encoding="chunked"))
        start = b"0\r\n" if filler.startswith(b"a") else b""
        client.sendall(start + filler * (2 * HEAD_BYTES // len(filler)))
        assert read(client).code == 400


# --- a client that stops sending --------------------------------------------------------------------------


def test_a_client_that_has_sent_all_it_will_gets_its_answers(service: Service) -> None:
    body = png()
    with connect(service) as half:
        half.sendall((head(content_type="image/png", content_length=len(body)) + body) * 3)
        half.shutdown(socket.SHUT_WR)
        assert [code for code in answers(half) if code != 100] == [200] * 3


@pytest.mark.parametrize("sent", [head(content_length=10, content_type="image/png") + b"x", b"GET /livez HT"])
def test_a_request_without_its_end_is_told(service: Service, sent: bytes) -> None:
    with connect(service) as half:
        half.sendall(sent)
        half.shutdown(socket.SHUT_WR)
        reply = read(half)
        assert (reply.code, reply.headers["connection"]) == (400, "close")
        assert closed(half)


# --- a body that nobody reads -----------------------------------------------------------------------------


def test_the_rest_of_a_refused_body_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DISCARD_BYTES", 2**20)
    with serving(max_body=10_000) as service, connect(service) as endless:
        endless.sendall(head(content_type="image/png", transfer_encoding="chunked"))
        assert sent_until_reset(endless, b"10000\r\n" + bytes(65536) + b"\r\n") < 2**25
        assert service.client.get("/livez").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"connection": "close"}])
def test_a_client_that_reads_only_after_it_sent_all_gets_its_refusal(fields: dict[str, Any]) -> None:
    body = bytes(2**23)
    with serving(max_body=10_000) as service, connect(service) as eager:
        eager.sendall(head(content_type="image/png", content_length=len(body), **fields) + body)
        assert read(eager).code == 413


def test_a_connection_is_kept_whose_refused_body_came_to_its_end(service: Service) -> None:
    with connect(service) as client:
        client.sendall(head("POST", "/nothing", content_length=200_000))
        assert read(client).code == 404
        client.sendall(bytes(200_000) + head("GET", "/livez"))
        assert read(client).code == 200


def test_a_client_that_was_not_told_to_go_on_is_hung_up_on(service: Service) -> None:
    """It does not send its body, so that what it sends next would be taken for one."""
    with connect(service) as waiting:
        waiting.sendall(head("POST", "/nothing", content_length=5, expect="100-continue"))
        reply = read(waiting)
        assert (reply.code, reply.headers["connection"]) == (404, "close")
        assert closed(waiting)
