"""Images: the image files that a request carries, in a form, in JSON, or as its body."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from pthserve.access.bodies import Bodies
from pthserve.errors import MalformedRequest, TooLarge
from pthserve.http.bodies import validated
from pthserve.http.json_numbers import Skeleton
from pthserve.http.limits import holding, until
from pthserve.http.multipart import parameter, parts_named
from pthserve.http.problems import JSON

FIELD, LIST = "image", "images"
MAX_IMAGES = 256
"""Maximum number of images in one request."""
RAW = ("application/octet-stream", "")
"""Content types, besides image/*, for which the body is the image; "" stands for a missing header."""


class ImagesInJson(BaseModel):
    """Images as base64 in JSON: one as `image`, or several as `images`."""

    model_config = ConfigDict(strict=True, defer_build=True)

    image: str | None = Field(None, description="one image file as base64, or as a data URL with base64")
    images: list[str] | None = Field(
        None, max_length=MAX_IMAGES, fail_fast=True, description="several; the response is a list"
    )


@dataclass(frozen=True, slots=True)
class Sent:
    """The image files in a request, and whether the response must be a list."""

    files: Sequence[bytes]
    is_list: bool = False


async def read_images(request: Request, bodies: Bodies, field: str = FIELD) -> Sent:
    """Return the image files in `request`.

    Args:
        bodies: Parses large JSON outside the event loop.
        field: The name of a part of a form that is an image.

    Raises:
        MalformedRequest: There is no image, or the body cannot be parsed.
        TooLarge: There are too many images.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MalformedRequest("an image must be sent without Content-Encoding: its format is compressed")
    header = request.headers.get("content-type", "").encode("latin-1")
    kind = header.partition(b";")[0].strip().lower().decode("latin-1")
    if kind == "multipart/form-data":
        boundary = parameter(header, b"boundary")
        if not boundary:
            raise MalformedRequest("the multipart Content-Type has no boundary")
        sent = _in_form(await request.body(), boundary, field)
    elif kind == JSON:
        body = await request.body()
        held = holding(request.scope)
        held.grow(len(body) * 3 // 4)  # the size after base64 is decoded
        sent = await bodies.read(held, body, until(request.scope), _in_json)
    elif kind.startswith("image/") or kind in RAW:
        body = await request.body()
        if not (body or kind):
            raise _missing(field)
        sent = Sent([body])
    else:
        raise _missing(field, f"; its Content-Type is {kind}")
    for number, file in enumerate(sent.files):
        if not file:
            raise MalformedRequest(f"{_named(number, len(sent.files))} is empty: {_how(field)}")
    return sent


async def read_image(request: Request, bodies: Bodies, field: str = FIELD) -> bytes:
    """Return the only image file in `request`; raises as `read_images`, and if there are several."""
    sent = await read_images(request, bodies, field)
    if len(sent.files) != 1:
        raise MalformedRequest(f"the request has {len(sent.files)} images; send one image per request")
    return sent.files[0]


def _in_form(body: bytes, boundary: bytes, field: str) -> Sent:
    parts = list(parts_named((field.encode(), LIST.encode()), body, boundary))
    if not parts:
        raise MalformedRequest(f"the request has no part named `{field}`: {_how(field)}")
    names = {name for name, _ in parts}
    if len(names) > 1:
        raise MalformedRequest(f"the request has parts named `{field}` and `{LIST}`; use one of these names")
    return Sent(_bounded([file for _, file in parts]), is_list=len(parts) > 1 or names == {LIST.encode()})


def _in_json(body: bytes) -> Sent:
    skeleton = Skeleton(body)
    sent = validated(ImagesInJson, skeleton.text)
    if sent.image is not None and sent.images is not None:
        raise MalformedRequest("the JSON has `image` and `images`; use one of them")
    texts = sent.images if sent.images is not None else [sent.image] if sent.image is not None else []
    if not texts:
        raise _missing(FIELD, "; its JSON has no `image`")
    files = [_decoded(skeleton.string(text), _named(number, len(texts))) for number, text in enumerate(texts)]
    skeleton.check()
    return Sent(files, is_list=sent.images is not None)


def _decoded(text: str, name: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedRequest(f"{name} is not valid base64") from error


def _bounded(files: list[bytes]) -> list[bytes]:
    if len(files) > MAX_IMAGES:
        raise TooLarge(f"the request has {len(files)} images; the limit is {MAX_IMAGES}")
    return files


def _named(number: int, count: int) -> str:
    return "the image" if count == 1 else f"image {number + 1} of {count}"


def _missing(field: str, detail: str = "") -> MalformedRequest:
    return MalformedRequest(f"the request contains no image{detail}: {_how(field)}")


def _how(field: str) -> str:
    return (
        f"send it as the multipart field `{field}`, as base64 in the JSON field `{FIELD}`, or as the body "
        "with its content type, such as image/png"
    )


_FILE = {"type": "string", "format": "binary", "description": "a JPEG, PNG, WebP, BMP, GIF or TIFF file"}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    FIELD: _FILE,
                    LIST: {"type": "array", "items": _FILE, "description": "several; the response is a list"},
                },
            }
        },
        JSON: {"schema": ImagesInJson.model_json_schema()},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""The OpenAPI description of the body: FastAPI cannot derive it, since `read_images` parses the body."""
