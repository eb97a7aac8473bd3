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
"""In one request."""
RAW = ("application/octet-stream", "")
"""Content types, beside image/*, with which the body is the image; the last is of a request without one."""


class ImagesInJson(BaseModel):
    """Images as base64 in JSON: one as `image`, or several as `images`."""

    model_config = ConfigDict(strict=True, defer_build=True)

    image: str | None = Field(None, description="one image file as base64, or as a data URL with base64")
    images: list[str] | None = Field(
        None, max_length=MAX_IMAGES, fail_fast=True, description="several; the response is a list"
    )


@dataclass(frozen=True, slots=True)
class Sent:
    """What a request carries: image files, and whether their answers are to come as a list."""

    files: Sequence[bytes]
    is_list: bool = False


async def read_images(request: Request, bodies: Bodies, field: str = FIELD) -> Sent:
    """The image files that `request` carries.

    bodies: reads large JSON beside the event loop. field: the name of a form's part that is an image.
    Raises MalformedRequest if there is none or the body cannot be parsed, and TooLarge for too many.
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
        held.grow(len(body) * 3 // 4)  # what base64 decodes to
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
    """The one image file that `request` carries; see `read_images`."""
    sent = await read_images(request, bodies, field)
    if len(sent.files) != 1:
        raise MalformedRequest(f"the request has {len(sent.files)} images; send one image per request")
    return sent.files[0]


def _in_form(body: bytes, boundary: bytes, field: str) -> Sent:
    found = list(parts_named((field.encode(), LIST.encode()), body, boundary))
    if not found:
        raise MalformedRequest(f"the request has no part named `{field}`: {_how(field)}")
    names = {name for name, _ in found}
    if len(names) > 1:
        raise MalformedRequest(f"the request has parts named `{field}` and `{LIST}`; use one of these names")
    return Sent(_bounded([file for _, file in found]), is_list=len(found) > 1 or names == {LIST.encode()})


def _in_json(body: bytes) -> Sent:
    skeleton = Skeleton(body)
    given = validated(ImagesInJson, skeleton.text)
    if given.image is not None and given.images is not None:
        raise MalformedRequest("the JSON has `image` and `images`; use one of them")
    texts = given.images if given.images is not None else [given.image] if given.image is not None else []
    if not texts:
        raise _missing(FIELD, "; its JSON has no `image`")
    files = [_decoded(skeleton.string(text), _named(number, len(texts))) for number, text in enumerate(texts)]
    skeleton.check()
    return Sent(files, is_list=given.images is not None)


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
"""The request body in OpenAPI's words: no parameter of a handler describes it, for `read_images` reads it."""
