"""What an ASGI app sends, as it is on the wire."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import uvicorn

from pthserve.http import connection, exchange

from ..http_service import PATIENCE
from ..http_wire import connect, head
from ..shared import until

Send = Callable[[Any], Any]


class Bare:
    """An app of one function, on a port."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app,
            port=0,
            http=cast("Any", connection.factory()),
            lifespan="off",
            log_config=None,
            ws="none",
            loop="uvloop",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])


@contextmanager
def serving(answer: Callable[[Send], Any]) -> Iterator[Any]:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await answer(send)

    bare = Bare(app)
    bare.thread.start()
    try:
        until(lambda: bare.server.started)
        yield bare
    finally:
        bare.server.should_exit = True
        bare.thread.join(PATIENCE)
        assert not bare.thread.is_alive()


def wire(service: Any, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of all that comes until the service hangs up."""
    with connect(service) as client:
        client.sendall(request)
        data = b""
        while piece := client.recv(65536):
            data += piece
    top, _, body = data.partition(b"\r\n\r\n")
    return top.lower(), body


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def stream(send: Send) -> None:
    await send(start())
    for body in (b"one", b"", b"two"):
        await send(part(body, more=True))
        await asyncio.sleep(0)
    await send(part())


CLOSE = {"connection": "close"}
OLD = b"GET / HTTP/1.0\r\n\r\n"


def test_an_answer_of_unknown_length_is_sent_in_chunks() -> None:
    with serving(stream) as service:
        top, body = wire(service, head("GET", "/", **CLOSE))
        assert b"transfer-encoding: chunked" in top
        assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert wire(service, head("HEAD", "/", **CLOSE)) == (top, b"")


def test_to_http_1_0_an_answer_of_unknown_length_ends_with_the_connection() -> None:
    with serving(stream) as service:
        top, body = wire(service, OLD.replace(b"\r\n\r\n", b"\r\nconnection: keep-alive\r\n\r\n"))
        assert b"transfer-encoding" not in top
        assert b"connection: close" in top
        assert body == b"onetwo"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_is_not_framed(status: int) -> None:
    async def answer(send: Send) -> None:
        await send(start(status))
        await send(part())

    with serving(answer) as service:
        top, body = wire(service, head("GET", "/", **CLOSE))
        assert b"transfer-encoding" not in top
        assert body == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    "header", [(b"a", b"b\r\nc: d"), (b"a\r\nb", b"c"), (b"a", b"b\x00"), (b"content-length", b"4")]
)
def test_a_head_that_would_mislead_a_client_is_a_mistake(
    header: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange.log, "disabled", True)

    async def answer(send: Send) -> None:
        await send(start(200, header))
        await send(part(b"12345"))

    with serving(answer) as service:
        top, body = wire(service, head("GET", "/"))
        assert top.startswith(b"http/1.1 500")
        assert b"internal error" in body


def test_an_app_that_fails_within_its_answer_leaves_it_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.log, "disabled", True)

    async def answer(send: Send) -> None:
        await send(start())
        await send(part(b"one", more=True))
        raise ValueError

    with serving(answer) as service:
        _, body = wire(service, head("GET", "/"))
        assert body == b"3\r\none\r\n"


def test_an_app_that_does_not_answer_is_a_mistake() -> None:
    async def answer(_: Send) -> None:
        return

    with serving(answer) as service:
        assert wire(service, head("GET", "/"))[0].startswith(b"http/1.1 500")
