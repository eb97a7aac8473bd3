"""Client: HTTP/1.1 over persistent connections, cheap enough to share cores with what it measures."""

import asyncio
import base64
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import unquote_to_bytes, urlsplit

import httptools

from pthserve.addresses import printable

BOUNDARY = b"pthserve-bench-a3f1c09d"
"""Separates the parts of a form; 23 bytes that no image contains by chance."""


class ConnectionFailed(Exception):
    """The connection could not be opened, was closed, or the response is not HTTP."""


@dataclass(frozen=True, slots=True)
class Target:
    """The address that requests are sent to.

    Attributes:
        url: The address for messages, without credentials.
    """

    host: str
    port: int
    tls: bool
    authority: str
    path: str
    url: str
    authorization: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Return the target at `url`, or at its /predict if it has no path.

        A user name and a password in `url` are sent as basic authentication.

        Raises:
            ValueError: `url` is not an HTTP address.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("URL must be the address of a service, such as http://127.0.0.1:8000")
        path = parts.path if parts.path not in ("", "/") else "/predict"
        tls = parts.scheme == "https"
        user, at, authority = parts.netloc.rpartition("@")
        name, _, password = user.partition(":")
        return cls(
            host=parts.hostname,
            port=port or (443 if tls else 80),
            tls=tls,
            authority=authority,
            path=path + (f"?{parts.query}" if parts.query else ""),
            url=printable(parts._replace(path=path).geturl()),
            authorization=_basic(name, password) if at else b"",
        )

    def request(
        self, image: Path, headers: Iterable[tuple[bytes, bytes]] = (), *, raw: bool = False
    ) -> bytes:
        """Return the bytes of a POST request with `image`.

        Args:
            headers: Names and values; `Host` and `Authorization` replace those from the address.
            raw: Send the image as the body, not as the form field `image`.
        """
        content = image.read_bytes()
        kind = f"image/{image.suffix[1:].lower().replace('jpg', 'jpeg')}".encode()
        if not raw:
            content = b"".join(
                (
                    b"--"
                    + BOUNDARY
                    + b'\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n',
                    b"Content-Type: " + kind + b"\r\n\r\n",
                    content,
                    b"\r\n--" + BOUNDARY + b"--\r\n",
                )
            )
            kind = b"multipart/form-data; boundary=" + BOUNDARY
        given = list(headers)
        names = {name.lower() for name, _ in given}
        own = [(b"Host", self.authority.encode())]
        if self.authorization:
            own.append((b"Authorization", self.authorization))
        sent = [
            *((name, value) for name, value in own if name.lower() not in names),
            (b"Content-Type", kind),
            (b"Content-Length", b"%d" % len(content)),
            *given,
        ]
        lines = [f"POST {self.path} HTTP/1.1".encode(), *(name + b": " + value for name, value in sent)]
        return b"\r\n".join(lines) + b"\r\n\r\n" + content


def _basic(user: str, password: str) -> bytes:
    """Return the value of an Authorization header; both arguments are percent-encoded, as in an address."""
    return b"Basic " + base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password))


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self.body: list[bytes] = []

    @classmethod
    async def open(cls, target: Target) -> "Connection":
        """Open a connection to `target`; raises ConnectionFailed."""
        context = ssl.create_default_context() if target.tls else None
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                cls, target.host, target.port, ssl=context
            )
        except OSError as error:
            raise ConnectionFailed(str(error)) from error
        return connection

    @property
    def usable(self) -> bool:
        """Return whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> int:
        """Send `request`, wait for the whole response, and return its status; `body` has its body."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionFailed("closed")
        self._answer = asyncio.get_running_loop().create_future()
        self.body.clear()
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.close()  # the rest of this response would be taken for the next one
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("closed" if exc is None else type(exc).__name__)

    # httptools

    def on_message_begin(self) -> None:
        self.body.clear()

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionFailed(reason))


class Pool:
    """Up to `most` persistent connections, opened when needed.

    requests: sent in turn.
    """

    def __init__(self, target: Target, requests: Sequence[bytes], most: int) -> None:
        self._target = target
        self._requests = requests
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(most)
        self._sent = 0

    async def ask(self, timeout: float) -> int:  # noqa: ASYNC109 - it includes the wait for a connection
        """Send the next request, and return its status; raises ConnectionFailed or TimeoutError."""
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        async with asyncio.timeout(timeout), self._room:
            while self._idle:
                connection = self._idle.pop()
                if connection.usable:
                    break
            else:
                connection = await Connection.open(self._target)
            status = await connection.ask(request)
            self._idle.append(connection)
            return status

    def close(self) -> None:
        """Close all idle connections."""
        for connection in self._idle:
            connection.close()
