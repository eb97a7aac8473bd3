"""Attacks on one pod: small requests that make the service work or allocate much.

Each is bounded in number and time, and goes to the pod's address alone. None needs an answer: what the
service refuses, or cuts off, it has defended itself against.
"""

import asyncio
import gzip
import io
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from PIL import Image

WIDE, HIGH = 16383, 3051
"""Just under the 50 megapixels that the service accepts."""
INFLATED = 20 * 2**20 - 400
"""Bytes that a compressed message has when it is inflated: just under the 20 MiB that the service accepts."""
PATIENCE = 20.0
"""Seconds that an answer is waited for: twice the service's deadline."""
FRAME = 16384
"""Most bytes of an HTTP/2 frame's content."""


@dataclass(frozen=True)
class Pod:
    """host: address of the pod. port, grpc_port: of HTTP and gRPC. model: name of what it serves."""

    host: str
    port: int
    grpc_port: int
    model: str


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request with all its bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: pod", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def together(host: str, port: int, requests: Sequence[bytes]) -> None:
    """Send each request on its own connection but for its last bytes; then all last bytes at once."""
    held = 16

    async def connected(request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request[:-held])
        await writer.drain()
        return reader, writer, request[-held:]

    async def finished(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes) -> None:
        with suppress(OSError, TimeoutError):
            writer.write(rest)
            async with asyncio.timeout(PATIENCE):
                while await reader.read(2**16):
                    pass
        writer.transport.abort()

    opened = await asyncio.gather(*map(connected, requests), return_exceptions=True)
    await asyncio.gather(*(finished(*one) for one in opened if not isinstance(one, BaseException)))


# --- images that are small and have many pixels ------------------------------------------------------

LOSSLESS_WEBP = bytes.fromhex("524946461a00000057454250 5650384c0e0000002ffebffa0207 1011fd0f4444ff03")
"""34 bytes: WIDE times HIGH pixels of one colour."""


@cache
def picture(kind: str) -> bytes:
    """An image of WIDE times HIGH pixels."""
    if kind == "lossless WebP":
        return LOSSLESS_WEBP
    options = {"lossy WebP": ("WEBP", {"method": 0}), "progressive JPEG": ("JPEG", {"progressive": True})}
    name, more = options[kind]
    file = io.BytesIO()
    Image.new("RGB", (WIDE, HIGH), (200, 30, 60)).save(file, name, **more)
    return file.getvalue()


def large_images(kind: str) -> Callable[[Pod], Awaitable[None]]:
    """Three times four at once: two to be classified, two to be explained."""

    async def attack(pod: Pod) -> None:
        requests = [
            post(path, picture(kind), content_type=f"image/{name}")
            for name in ("jpeg" if "JPEG" in kind else "webp",)
            for path in ("/predict", "/explain") * 2
        ]
        for _ in range(3):
            await together(pod.host, pod.port, requests)

    return attack


# --- messages that are small and inflate to megabytes -------------------------------------------------


async def compressed_inference(pod: Pod) -> None:
    """Inference requests over HTTP, 64 at once and then 200."""
    tensor = b'{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [255, 0, 0]}'
    said = b'{"id": "%s", "inputs": [%s]}' % (b"a" * (INFLATED - 200), tensor)
    body = gzip.compress(said, 9)
    request = post(
        f"/v2/models/{pod.model}/infer", body, content_type="application/json", content_encoding="gzip"
    )
    for count in (64, 200):
        await together(pod.host, pod.port, [request] * count)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number % 128 | 128)
        number //= 128
    return bytes([*found, number])


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def _header(name: bytes, value: bytes) -> bytes:
    """A literal header of HPACK that is not indexed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def compressed_calls(model: str, count: int) -> bytes:
    """A client's side of an HTTP/2 connection with `count` calls of ModelInfer, each message gzip.

    They fit in the 65,535 bytes that every server takes unasked, so no window need be watched.
    """
    named = b"\x0a" + _varint(len(model)) + model.encode()  # field 1: the model's name
    ident = b"\x1a" + _varint(INFLATED) + b"a" * INFLATED  # field 3: the request's id
    message = gzip.compress(named + ident, 9)
    data = b"\1" + struct.pack(">I", len(message)) + message
    assert count * len(data) < 65535
    headers = b"".join(
        _header(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
            (b":authority", b"pod"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-encoding", b"gzip"),
        )
    )
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0)
    streams = [2 * number + 1 for number in range(count)]
    sent += b"".join(_frame(1, 4, stream, headers) for stream in streams)
    for begin in range(0, len(data), FRAME):
        last = begin + FRAME >= len(data)
        sent += b"".join(_frame(0, last, stream, data[begin : begin + FRAME]) for stream in streams)
    return sent


async def compressed_grpc(pod: Pod) -> None:
    """576 calls of gRPC on 192 connections, all at once."""
    await together(pod.host, pod.grpc_port, [compressed_calls(pod.model, 3)] * 192)


# --- requests whose answers nobody reads ----------------------------------------------------------------


async def pipelining(pod: Pod) -> None:
    """Two connections, each with up to 24 MiB of requests of 32 bytes in 20 seconds; no answer is read."""
    block = b"GET /livez HTTP/1.1\r\nA: bbbb\r\n\r\n" * 1024
    assert len(block) == 32 * 1024

    async def flood() -> None:
        _, writer = await asyncio.open_connection(pod.host, pod.port, limit=2**10)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(20):
                for _ in range(24 * 2**20 // len(block)):
                    writer.write(block)
                    await writer.drain()
                await asyncio.sleep(2)
        writer.transport.abort()

    await asyncio.gather(flood(), flood())


ATTACKS: dict[str, Callable[[Pod], Awaitable[None]]] = {
    "lossless WebP": large_images("lossless WebP"),
    "lossy WebP": large_images("lossy WebP"),
    "progressive JPEG": large_images("progressive JPEG"),
    "gzip over HTTP": compressed_inference,
    "gzip over gRPC": compressed_grpc,
    "pipelining": pipelining,
}


# --- and what another client sees -----------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """One GET of /livez: the status, 0 where none came, and how many seconds it took."""

    status: int
    seconds: float


async def probe(pod: Pod, seconds: float) -> Probe:
    """Ask as the kubelet does: on a connection of its own, and for so many seconds at most."""
    began, status = time.monotonic(), 0
    with suppress(OSError, TimeoutError, IndexError, ValueError):
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(pod.host, pod.port)
            try:
                writer.write(b"GET /livez HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
                status = int((await reader.readline()).split()[1])
            finally:
                writer.close()
    return Probe(status, time.monotonic() - began)


async def probed(attack: Callable[[Pod], Awaitable[None]], pod: Pod, seconds: float) -> list[Probe]:
    """Attack the pod; what probes saw, one every tenth of a second, until two seconds after the attack."""
    seen: list[Probe] = []

    async def watch() -> None:
        while True:
            seen.append(await probe(pod, seconds))
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    await attack(pod)
    await asyncio.sleep(2)
    watching.cancel()
    return seen
