"""Clients that keep each answer, and when it was asked for and came."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from pthserve.bench.client import Connection, ConnectionFailed, Target


@dataclass(frozen=True, slots=True)
class Answer:
    """asked: which of the requests; sent, when it was due, and came: in seconds of time.perf_counter().

    status: 0 where none came, and `said` then says why; headers: in lower case; said: the JSON.
    """

    asked: int
    sent: float
    came: float
    status: int
    headers: dict[bytes, bytes]
    said: Any

    @property
    def seconds(self) -> float:
        return self.came - self.sent


class _Connection(Connection):
    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[bytes, bytes] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value


def post(image: bytes, path: str = "/predict", **headers: str) -> bytes:
    """A request for what `image`, a PNG, shows."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: image/png",
        f"content-length: {len(image)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + image


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


@dataclass
class Clients:
    """Send `requests` to `address`, in turn, over connections that are kept."""

    address: str
    requests: Sequence[bytes]
    answers: list[Answer] = field(default_factory=list)
    _idle: list[_Connection] = field(default_factory=list)
    _sent: int = 0

    def close(self) -> None:
        """Cut the connections."""
        for connection in self._idle:
            connection.close()

    async def one(self, due: float | None = None) -> Answer:
        """The answer to the next request, which was `due` then."""
        asked = self._sent % len(self.requests)
        self._sent += 1
        sent = time.perf_counter() if due is None else due
        status, headers, said = 0, {}, None
        try:
            connection = await self._connection()
            connection.headers = {}
            status = await connection.ask(self.requests[asked])
            headers, said = connection.headers, orjson.loads(b"".join(connection.body))
            self._idle.append(connection)
        except ConnectionFailed as error:
            said = str(error)
        answer = Answer(asked, sent, time.perf_counter(), status, headers, said)
        self.answers.append(answer)
        return answer

    async def closed(self, clients: int, seconds: float) -> None:
        """So many clients for so long, each of which waits for its answers."""

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one()

        end = time.perf_counter() + seconds
        await asyncio.gather(*(client() for _ in range(clients)))
        self.close()

    async def open(self, rate: float, seconds: float) -> None:
        """So many requests a second for so long, whatever comes of them."""
        began = time.perf_counter()
        tasks = []
        for number in range(round(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self.one(due)))
        await asyncio.gather(*tasks)
        self.close()

    @asynccontextmanager
    async def busy(self, clients: int) -> AsyncIterator[None]:
        """So many clients that each wait for their answers, until the block is left."""

        async def client() -> None:
            while not done.is_set():
                await self.one()

        done = asyncio.Event()
        working = asyncio.gather(*(client() for _ in range(clients)))
        try:
            yield
        finally:
            done.set()
            await working
            self.close()

    @asynccontextmanager
    async def every(self, pause: float) -> AsyncIterator[None]:
        """A request, and a pause of so many seconds, until the block is left."""

        async def probe() -> None:
            while True:
                await self.one()
                await asyncio.sleep(pause)

        probing = asyncio.create_task(probe())
        try:
            yield
        finally:
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
            self.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        found = await _Connection.open(Target.parse(self.address))
        assert isinstance(found, _Connection)
        return found
