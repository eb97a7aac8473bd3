"""Bytes, deadline and disconnect, before a route is reached."""

import asyncio
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest

from pthserve.access.bodies import BODIES, Bodies
from pthserve.http.exchange import LARGE
from pthserve.http.limits import Limits

from ..http_service import Service, serving
from ..http_wire import closed, connect, exchange, head, read
from ..serving.squares import Gate, Squares, png, squares
from ..shared import until
from .test_routes import replay


@pytest.fixture(scope="module")
def small() -> Iterator[Service]:
    with serving(max_body=10_000, deadline=0.5) as service:
        yield service


def post(body: bytes, **headers: Any) -> bytes:
    return head(content_type="image/png", content_length=len(body), **headers) + body


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(small: Service) -> None:
    reply = exchange(small, head(content_type="image/png", content_length=10_001))
    assert reply.code == 413
    assert "10000 bytes" in reply.error


def test_a_body_that_waits_for_leave_is_not_given_it(small: Service) -> None:
    request = head(content_type="image/png", content_length=10_001, expect="100-continue")
    assert exchange(small, request).code == 413


def test_a_body_in_chunks_is_counted_as_it_comes(small: Service) -> None:
    chunk = b"%x\r\n%s\r\n" % (5000, b"x" * 5000)
    with connect(small) as connection:
        connection.sendall(head(content_type="image/png", transfer_encoding="chunked") + chunk * 2)
        connection.sendall(chunk)
        assert read(connection).code == 413


def test_a_body_of_the_size_that_is_allowed_is_read(small: Service) -> None:
    assert exchange(small, post(b"x" * 10_000)).code == 415


@pytest.mark.slow
def test_a_slow_body_is_told_and_hung_up_on(small: Service, service: Service) -> None:
    schema = service.client.get("/openapi.json").json()
    with connect(small) as connection:
        connection.sendall(post(png())[:-1])
        reply = read(connection)
        assert reply.headers["connection"] == "close"
        assert closed(connection)
    replay(schema, ("/predict", "post", "408"), httpx.Response(reply.code, content=reply.body))


def test_slow_bodies_hold_no_permit() -> None:
    with serving(max_inflight=2, deadline=30) as service:
        slow = [connect(service) for _ in range(20)]
        for connection in slow:
            connection.sendall(post(png())[:-1])
        assert exchange(service, post(png())).code == 200
        assert service.metric("pthserve_inflight_requests") == 0
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "1_0x"])
def test_a_timeout_that_is_no_time_is_refused(client: httpx.Client, value: str) -> None:
    response = client.post("/predict", files={"image": png()}, headers={"x-request-timeout": value})
    assert response.status_code == 400
    assert "X-Request-Timeout" in response.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize(("deadline", "granted"), [(0.5, "60"), (60.0, "0.5")])
def test_a_client_can_only_shorten_the_deadline(deadline: float, granted: str) -> None:
    gate = Gate()
    engine = Squares()
    with serving(squares(engine), deadline=deadline) as service:
        engine.hook = gate
        reply = service.client.post(
            "/predict", files={"image": png()}, headers={"x-request-timeout": granted}
        )
        assert reply.status_code == 504
        assert reply.elapsed.total_seconds() < 20
        gate.opened.set()


@pytest.mark.slow
def test_a_client_that_leaves_is_counted_and_costs_no_forward_pass() -> None:
    gate = Gate()
    engine = Squares()
    with serving(squares(engine)) as service:
        engine.hook = gate
        names = ("pthserve_disconnects_total", 'pthserve_requests_total{code="499",route="/predict"}')
        before = [service.metric(name) for name in names]
        engine.batches.clear()
        with connect(service) as first:
            first.sendall(post(png()))
            assert gate.entered.wait(10)
            for _ in range(3):
                with connect(service) as leaving:
                    leaving.sendall(post(png()))
                    until(lambda: service.metric("pthserve_queue_depth") > 0)
                until(lambda: service.metric("pthserve_inflight_requests") == 1)
            gate.opened.set()
            assert read(first).code == 200
        assert exchange(service, post(png())).code == 200
        assert engine.batches == [1, 1]
        until(lambda: [service.metric(name) for name in names] == [count + 3 for count in before])


def test_a_client_that_leaves_while_it_sends_is_counted(service: Service) -> None:
    before = service.metric("pthserve_disconnects_total")
    with connect(service) as leaving:
        leaving.sendall(post(png())[:-1])
    until(lambda: service.metric("pthserve_disconnects_total") == before + 1)


def test_requests_one_after_another_on_a_connection_are_answered_in_turn(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(post(png()) + post(b"no image") + head("GET", "/livez"))
        codes = b""
        while codes.count(b"HTTP/1.1 ") < 3:
            codes += connection.recv(65536)
        assert [part[:3] for part in codes.split(b"HTTP/1.1 ")[1:]] == [b"200", b"415", b"200"]


async def test_bodies_are_not_held_beyond_what_memory_allows() -> None:
    """Each is small enough by itself."""

    async def hold(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        held.append(1)
        if len(held) == BODIES:
            all_held.set()
        await release.wait()
        await _ok(send)

    async def request(body: bytes) -> int:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        codes = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if "status" in message:
                codes.append(message["status"])

        await limits({"type": "http", "headers": []}, receive, send)
        return codes[0]

    held: list[int] = []
    all_held, release = asyncio.Event(), asyncio.Event()
    bodies = Bodies(max_body=1000, cpus=1)
    limits = Limits(hold, deadline=30, bodies=bodies, draining=lambda: False)
    full = [asyncio.create_task(request(b"x" * 1000)) for _ in range(BODIES)]
    await all_held.wait()
    with pytest.raises(Exception, match="no memory left"):  # the app answers it
        await request(b"x")
    release.set()
    assert await asyncio.gather(*full) == [200] * BODIES
    assert bodies.held == 0


async def _never() -> Any:
    """Nothing more arrives."""
    await asyncio.Event().wait()


async def test_a_large_response_counts_until_the_client_has_read_it() -> None:
    body = bytes(LARGE)
    bodies = Bodies(max_body=LARGE, cpus=1)
    limits = Limits(_large(body), deadline=30, bodies=bodies, draining=lambda: False)
    sending, leave = asyncio.Event(), asyncio.Event()
    received: list[Any] = []

    async def send(message: Any) -> None:
        received.append(message)
        if message["type"] == "http.response.body":
            sending.set()
            await leave.wait()

    request = asyncio.create_task(limits({"type": "http", "headers": []}, _never, send))
    await sending.wait()
    assert bodies.held == LARGE
    leave.set()
    await request
    assert bodies.held == 0
    assert [message.get("status", message.get("body")) for message in received] == [200, body]


async def test_a_response_that_there_is_no_memory_for_is_an_error_that_says_so() -> None:
    bodies = Bodies(max_body=LARGE, cpus=1)
    with closing(bodies.hold()) as others:
        others.grow(BODIES * LARGE - 1)
        limits = Limits(_large(bytes(LARGE)), deadline=30, bodies=bodies, draining=lambda: True)
        received: list[Any] = []

        async def send(message: Any) -> None:
            received.append(message)

        await limits({"type": "http", "headers": []}, _never, send)
        start, body = received
        assert start["status"] == 503
        assert dict(start["headers"])[b"connection"] == b"close"
        assert int(dict(start["headers"])[b"content-length"]) == len(body["body"])
        assert b"no memory left" in body["body"]
        assert bodies.held == others.size
    received.clear()
    never = Limits(_large(bytes(LARGE * BODIES + 1)), deadline=30, bodies=bodies, draining=lambda: False)
    await never({"type": "http", "headers": []}, _never, send)
    assert received[0]["status"] == 413
    assert b"ask for less" in received[1]["body"]
    assert bodies.held == 0


def _large(body: bytes) -> Any:
    """An app that answers with `body`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def test_large_bodies_that_never_end_make_way_for_small_ones() -> None:
    with serving(max_body=100_000) as service, ExitStack() as stack:
        refused = 'pthserve_rejected_total{reason="memory"}'
        before = service.metric(refused)
        slow = [stack.enter_context(connect(service)) for _ in range(BODIES + 4)]
        for connection in slow:
            connection.sendall(head(content_type="image/png", content_length=100_000) + bytes(99_000))
        until(lambda: service.metric(refused) - before >= 2, "a refusal")
        assert exchange(service, post(png())).code == 200
        until(lambda: any(map(_readable, slow)), "the response of a refusal")
        codes = [read(connection).code for connection in slow if _readable(connection)]
        assert codes
        assert set(codes) == {503}
        assert len(codes) < len(slow)


def _readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


async def _ok(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_a_client_that_leaves_after_its_answer_interrupts_nothing() -> None:
    finished = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await _ok(send)
        await asyncio.sleep(0.05)
        finished.set()

    left = asyncio.Event()
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            left.set()

    limits = Limits(app, deadline=30, bodies=Bodies(max_body=1000, cpus=1), draining=lambda: False)
    await limits({"type": "http", "headers": []}, receive, send)
    assert finished.is_set()
