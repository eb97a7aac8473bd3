"""Requests as no well-behaved client sends them, each made of a number and a seed alone."""

import base64
import gzip
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ..images.pictures import KINDS, file_of

SHAPE = (3, 32, 32)
"""Of the model's tensors."""
MODEL = "net"

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63),
        1e308,
        0.5,
        "",
        "x",
        "\0",
        "\u202e",
        "é" * 300,
        "A" * 2000,
    ),
    *([], {}, [[]], [None], [[[[[[[[]]]]]]]], {"": {}}, "1", "NaN", "../../etc/passwd", [0] * 3000),
    *("BYTES", "FP32", "UINT8", "INT64", [1], [-1], [1, 2, 3], [2**40, 2**40]),
)
_TYPES: tuple[str, tuple[str, ...]] = (
    "image/png",
    (
        "image/jpeg",
        "image/",
        "image/*;q=0",
        "text/plain",
        "application/json",
        "",
        "\x7f",
        "image/" + "x" * 900,
    ),
)
"""What is usual, and what is odd."""


@dataclass(frozen=True)
class Sent:
    """Bytes for a connection.

    kind: what was done. whole: whether it is one request that is complete, so that an answer must come.
    """

    kind: str
    data: bytes
    whole: bool = True
    head: bool = False


def request(seed: int, number: int) -> Sent:
    """The request `number` of the run `seed`."""
    dice = random.Random(f"{seed} {number}")
    make = dice.choices([maker for maker, _ in _KINDS], [weight for _, weight in _KINDS])[0]
    return make(dice)


def mangled(dice: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes changed, left out, put in, doubled, or cut off; more often near its start."""
    found = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 3, 10, 40))):
        if not found:
            break
        place = dice.randrange(min(dice.choice((16, 64, 600, len(found))), len(found)))
        length = dice.choice((1, 1, 2, 4, 4, 8, 100))
        change = dice.randrange(7)
        if change <= 1:
            found[place] = dice.randrange(256)
        elif change == 2:
            found[place] ^= 1 << dice.randrange(8)
        elif change == 3:
            width = dice.choice((1, 2, 4))
            value = dice.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            found[place : place + width] = value.to_bytes(width, dice.choice(("big", "little")))
        elif change == 4:
            del found[place : place + length]
        elif change == 5:
            found[place:place] = (
                dice.randbytes(length) if dice.random() < 0.5 else found[place : place + length]
            )
        elif dice.random() < 0.3:
            del found[place:]
    return bytes(found)


def image(dice: random.Random) -> bytes:
    """A file of any format and mode, more often broken than not."""
    data = mangled(dice, file_of(dice.choice(KINDS)))
    if dice.random() < 0.03:  # two of them, and one begins where the other is cut
        data = data[: dice.randrange(len(data) + 1)] + file_of(dice.choice(KINDS))
    return data


def _rarely(dice: random.Random, usual: Any, odd: tuple[Any, ...]) -> Any:
    return dice.choice(odd) if dice.random() < 0.2 else usual


def _post(path: str, body: bytes, dice: random.Random, kind: str, **headers: str) -> Sent:
    fields = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if dice.random() < 0.05:
        odd = ("", "0", "-1", "1", "nan", "inf", "1e999", "0x10", "ü", "9" * 400)
        fields["x-request-timeout"] = dice.choice(odd)
    if dice.random() < 0.05:
        fields["x-request-id"] = dice.choice(("", "a" * 500, "a b", "\x01", "ok"))
    chunked = dice.random() < 0.1
    if chunked:
        fields["transfer-encoding"] = "chunked"
    else:
        fields["content-length"] = str(len(body))
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    data = "\r\n".join(lines).encode("latin-1", "replace")
    return Sent(kind, data + (_chunks(dice, body) if chunked else body))


def _chunks(dice: random.Random, body: bytes) -> bytes:
    size = dice.choice((7, 4096, 65536)) if len(body) < 20_000 else 65536
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _raw(dice: random.Random) -> Sent:
    odd = ("?top=2", "?top=0", "?top=-1", "?top=99999999999", "?top=", "?top=%00&top=3", "?" + "a=b&" * 500)
    query = _rarely(dice, "", odd)
    return _post(f"/predict{query}", image(dice), dice, "image", content_type=_rarely(dice, *_TYPES))


def _explained(dice: random.Random) -> Sent:
    query = _rarely(dice, "", ("?class=1", "?class=-1", "?class=4", "?class=999999999", "?class=x"))
    accept = dice.choice(("*/*", "application/json", "", "image/png;q=x"))
    return _post(f"/explain{query}", image(dice), dice, "explain", content_type="image/png", accept=accept)


def _form(dice: random.Random) -> Sent:
    boundary = _rarely(dice, b"b", (b"----x", b"x" * 70, b"", b" ", b"x" * 2000))
    name = _rarely(dice, b"image", (b"imag\xc3\xa9", b"", b'"', b"other"))
    file = dice.choice((b"a.png", b"", b"../x", b"\0", b"\xff" * 300))
    head = b'Content-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: image/png' % (
        name,
        file,
    )
    content = image(dice) if dice.random() < 0.5 else file_of("PNG palette")
    part = b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, head, content)
    parts = _rarely(dice, 1, (2, 15, 16, 17, 400) if len(part) < 20_000 else (2,))
    body = part * parts + b"--%s--\r\n" % boundary
    if dice.random() < 0.3:
        cut = body.index(b"\r\n\r\n") + 4
        body = mangled(dice, body[:cut]) + body[cut:]
    if dice.random() < 0.1:
        body = body[: -dice.randrange(1, 40)]
    kind = _rarely(
        dice, 'form-data; boundary="{}"', ("form-data; boundary={}", "mixed; boundary={}", "{}", "")
    )
    return _post("/predict", body, dice, "form", content_type=f"multipart/{kind.format(boundary.decode())}")


def _inference(dice: random.Random) -> dict[str, Any]:
    """A sound one."""
    kind, count = dice.choice(("BYTES", "UINT8", "FP32")), dice.choice((1, 1, 2))
    data: list[Any]
    if kind == "BYTES":
        shape, data = [count], [base64.b64encode(file_of("PNG 1 bit")).decode()] * count
    elif kind == "UINT8":
        shape, data = [count, 5, 7, 3], np.resize(np.arange(256), count * 105).tolist()
    else:
        shape, data = [count, *SHAPE], np.linspace(-2, 2, count * 3072).round(2).tolist()
    names = {"BYTES": "image", "UINT8": "pixels", "FP32": "tensor"}
    outputs = [{"name": "probabilities"}, {"name": "logits", "parameters": {"classification": 2}}]
    asked = {"id": "7", "inputs": [{"name": names[kind], "datatype": kind, "shape": shape, "data": data}]}
    return asked | ({"outputs": outputs} if dice.random() < 0.5 else {})


def warped(dice: random.Random, value: Any) -> Any:
    """`value` with something odd somewhere in it."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        name = dice.choice(list(value))
        if dice.random() < 0.1:
            return {other: inner for other, inner in value.items() if other != name}
        if dice.random() < 0.1:
            return value | {dice.choice(("parameters", "", "data", "binary_data_size")): dice.choice(_ODD)}
        return value | {name: warped(dice, value[name])}
    if isinstance(value, list) and value and dice.random() < 0.85:
        place = dice.randrange(min(8, len(value)))
        return [*value[:place], warped(dice, value[place]), *value[place + 1 :]]
    return dice.choice(_ODD)


def _written(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a number that JSON has and orjson has not
        return repr(value).replace("'", '"').encode("utf-8", "replace")


def _infer_path(dice: random.Random) -> str:
    return dice.choice((f"/v2/models/{MODEL}/infer", f"/v2/models/{MODEL}/versions/1/infer"))


def _json(dice: random.Random) -> Sent:
    asked: Any = _inference(dice)
    for _ in range(dice.choice((0, 0, 1, 2, 4))):
        asked = warped(dice, asked)
    text = _written(asked)
    if dice.random() < 0.1:
        text = mangled(dice, text)
    if dice.random() < 0.02:
        text = dice.choice((b"[" * 100_000, b'{"inputs":' * 5_000, b'{"a":1e999}', b"\xef\xbb\xbf{}", b"NaN"))
    return _post(_infer_path(dice), text, dice, "JSON", content_type="application/json")


def _binary(dice: random.Random) -> Sent:
    asked = _inference(dice)
    tensor = asked["inputs"][0]
    values = tensor.pop("data")
    kind = tensor["datatype"]
    if kind == "BYTES":
        blobs = [image(dice) for _ in values]
        data = b"".join(len(blob).to_bytes(4, "little") + blob for blob in blobs)
    else:
        data = np.array(values, np.uint8 if kind == "UINT8" else np.float32).tobytes()
        if dice.random() < 0.3:
            special = dice.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))
            data = np.full(len(data) // 4, special, np.float32).tobytes()
    tensor["parameters"] = {"binary_data_size": len(data)}
    if dice.random() < 0.3:
        asked["parameters"] = {"binary_data_output": dice.choice((True, False, 1, "x"))}
    if dice.random() < 0.3:
        asked = warped(dice, asked)
    if dice.random() < 0.3:
        data = mangled(dice, data)
    text = _written(asked)
    length = str(len(text))
    if dice.random() < 0.1:
        odd = ("", "0", "-1", "1", "x", "9" * 30, str(len(text) - 1), str(len(text) + 1), " 5", "٣")
        length = dice.choice(odd)
    body, encoding = text + data, ""
    if dice.random() < 0.2:
        encoding = dice.choice(("gzip", "deflate", "br", "identity", "gzip, gzip"))
        body = gzip.compress(body, 1) if "gzip" in encoding else zlib.compress(body, 1)
        if dice.random() < 0.2:
            body = mangled(dice, body)
        if dice.random() < 0.1:
            body = gzip.compress(dice.choice((bytes(30 * 2**20), b'{"id": "%b"}' % (b"x" * 2**22))), 1)
    return _post(
        _infer_path(dice),
        body,
        dice,
        "binary",
        inference_header_content_length=length,
        **({"content_encoding": encoding} if encoding else {}),
    )


_PLACES = (
    *("/", "/docs", "/openapi.json", "/info", "/metrics", "/livez", "/readyz", "/healthz", "/page/x/app.js"),
    *("/v2", "/v2/", "/v2/models", "/v2/models/net", "/v2/models/net/ready", "/v2/models/net/stats"),
    *("/v2/models/stats", "/v2/health/ready", "/v2/models/net/versions/1", "/v2/models/a%2fb", "//", "/.."),
    *("/v2/repository/index", "/v2/repository/models/net/unload", "/v2/repository/models/other/load", "/%"),
    *(
        "/%00",
        "/%ff%fe",
        "/predict/",
        "/PREDICT",
        "/predict%20",
        "/predict;a=b",
        "/page/../../etc/passwd",
        "*",
    ),
    *("/page/%2e%2e/%2e%2e/settings.py", "/explain", "/v2/models//infer", "/" + "a/" * 900, "http://x/info"),
)
_METHODS = ("GET", "GET", "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND")


def _place(dice: random.Random) -> Sent:
    method, path = dice.choice(_METHODS), dice.choice(_PLACES)
    if dice.random() < 0.2:
        path += dice.choice(("?", "?a=b", "?%", "?" + "a=b&" * 500, "?top=\x80", "#x"))
    body = dice.choice((b"", b"", b"{}", b"x", b"[]", b"\xff"))
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    if dice.random() < 0.3:
        lines.append(f"accept: {dice.choice(('application/openmetrics-text', '*', '', 'x' * 3000))}")
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    return Sent("place", data, head=method == "HEAD")


def _wire(dice: random.Random) -> Sent:
    """A request whose head is mangled: where it ends, nobody knows."""
    sent = dice.choice((_place, _json, _form))(dice)
    top, gap, body = sent.data.partition(b"\r\n\r\n")
    data = mangled(dice, top + gap) + body[:5000]
    return Sent("wire", data, whole=False, head=data.startswith(b"HEAD "))


_KINDS: tuple[tuple[Callable[[random.Random], Sent], int], ...] = (
    (_raw, 40),
    (_form, 15),
    (_json, 14),
    (_binary, 14),
    (_place, 9),
    (_explained, 4),
    (_wire, 4),
)
