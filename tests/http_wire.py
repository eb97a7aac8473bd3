"""HTTP as it is on the wire, for clients that are not well-behaved."""

import re
import socket
from dataclasses import dataclass

import orjson

from .http_service import PATIENCE, Service


@dataclass
class Reply:
    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(orjson.loads(self.body)["error"])


def connect(service: Service, receive: int | None = None) -> socket.socket:
    """A connection. receive: bytes that its kernel takes of answers that are not read."""
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    if receive is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.connect(("127.0.0.1", service.port))
    return connection


def head(method: str = "POST", path: str = "/predict", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def read(connection: socket.socket) -> Reply:
    """The next reply."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, f"the connection was closed after {data!r}"
        data += piece
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return Reply(int(status.split()[1]), headers, body)


def answers(connection: socket.socket) -> list[int]:
    """The codes of all answers until the service hangs up."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", data)]


def exchange(service: Service, data: bytes) -> Reply:
    with connect(service) as connection:
        connection.sendall(data)
        return read(connection)


def closed(connection: socket.socket) -> bool:
    """Whether the service hangs up."""
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True
