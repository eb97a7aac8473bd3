"""A client that sends whatever it is given, and expects nothing of what comes back."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from .mutations import Sent

PATIENCE = 40.0
"""Seconds after which an answer that does not come has been forgotten; the service's deadline is 10."""
GLANCE = 0.3
"""Seconds that an answer is waited for which need not come."""


@dataclass(frozen=True)
class Reply:
    """code: 0 where the service hung up instead of answering, -1 where it did neither."""

    code: int
    headers: dict[str, str]
    body: bytes


NONE, HUNG_UP = Reply(-1, {}, b""), Reply(0, {}, b"")


class Client:
    """A connection to `port`, opened again when it is closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, sent: Sent) -> Reply:
        """The answer to `sent`."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(sent.data)
        draining = asyncio.ensure_future(writer.drain())
        try:
            async with asyncio.timeout(PATIENCE if sent.whole else GLANCE):
                reply = await _read(reader, head=sent.head)
        except TimeoutError:
            reply = NONE
        except (OSError, asyncio.IncompleteReadError):
            reply = HUNG_UP
        unsent = not draining.done()
        draining.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await draining
        if unsent or not sent.whole or reply.code <= 0 or reply.headers.get("connection") == "close":
            self.close()
        return reply

    def close(self) -> None:
        """Cut the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read(reader: asyncio.StreamReader, *, head: bool) -> Reply:
    top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = top.strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    code = int(status.split()[1])
    length = 0 if head or code in (204, 304) else int(headers["content-length"])
    return Reply(code, headers, await reader.readexactly(length))
