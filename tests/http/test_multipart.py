"""The image out of a request's body, however the body is cut into pieces."""

import asyncio
from collections.abc import Iterable

import pytest
from starlette.requests import Request

from pthserve.access.bodies import Bodies
from pthserve.errors import MalformedRequest, TooLarge
from pthserve.http.images import read_image
from pthserve.http.multipart import MAX_PARTS

IMAGE = b"\xff\xd8\r\n--b\r\n\x00--boundary-\r\n-- \r" * 40
BODIES = Bodies(20 * 2**20, 2)
FORM = "multipart/form-data; boundary=boundary"


def part(content: bytes = IMAGE, disposition: str = 'form-data; name="image"; filename="a.jpg"') -> bytes:
    return (
        f"--boundary\r\nContent-Disposition: {disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
        + content
        + b"\r\n"
    )


END = b"--boundary--\r\n"


def read(chunks: Iterable[bytes], content_type: str | None = FORM) -> bytes:
    """What is found in a body that arrives in `chunks`."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    return asyncio.run(read_image(Request({"type": "http", "headers": headers}, receive), BODIES))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_the_image_is_whole_wherever_the_body_is_cut(size: int) -> None:
    body = part(b"other", 'form-data; name="note"') + part() + part(b"more", 'form-data; name="last"') + END
    assert read(body[at : at + size] for at in range(0, len(body), size)) == IMAGE


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=image",
        'form-data; name="image"',
        'FORM-DATA; NAME="image"',
        'form-data; filename="x;name=y"; name="image"',
        "form-data; name=\"image\"; filename*=UTF-8''%e2%82%ac.jpg",
        r'form-data ; name = "i\mage" ; filename="\";name=y"',
    ],
)
def test_the_field_is_found_however_its_name_is_written(disposition: str) -> None:
    assert read([part(disposition=disposition) + END]) == IMAGE


def test_a_boundary_may_have_blanks_behind_it_and_text_after_the_last() -> None:
    body = part().replace(b"--boundary\r\n", b"--boundary \t\r\n", 1) + END + b"--boundary\r\nmore"
    assert read([body]) == IMAGE
    assert read([part() + END], 'Multipart/Form-Data; charset=x; BOUNDARY="boundary"') == IMAGE


@pytest.mark.parametrize(
    "preamble", [b"", b"This is a multi-part message.", b"a\r\nb\r\n", b"--bound\r\n--bound"]
)
def test_text_may_stand_before_the_first_boundary(preamble: bytes) -> None:
    assert read([preamble + b"\r\n" + part() + END]) == IMAGE


def test_what_stands_before_the_first_boundary_is_no_part() -> None:
    with pytest.raises(MalformedRequest, match="no part named"):
        read([b"--other\r\n" + part()[12:] + b"--boundary\r\n\r\n\r\n" + END])


def test_a_part_needs_no_headers() -> None:
    assert read([b"--boundary\r\n\r\nabc\r\n--boundary\r\n\r\n\r\n" + part() + END]) == IMAGE


def test_a_raw_body_is_the_image() -> None:
    assert read([IMAGE[:10], IMAGE[10:]], "image/jpeg") == IMAGE
    assert read([IMAGE], "IMAGE/PNG; charset=binary") == IMAGE


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", None, "contains no image"),
        (b"image=1", "application/x-www-form-urlencoded", "contains no image"),
        (b"", "image/png", "is empty"),
        (part(b"") + END, FORM, "is empty"),
        (part(disposition='form-data; name="picture"') + END, FORM, "no part named `image`"),
        (part(disposition="form-data") + END, FORM, "no part named `image`"),
        (END, FORM, "no part named `image`|cannot be parsed"),
        (part() + part() + END, FORM, "has 2 images"),
        (part(), FORM, "ends before"),
        (part()[:-20], FORM, "ends before"),
        (b"", FORM, "ends before"),
        (b"--other\r\n", FORM, "cannot be parsed"),
        (part() + END, "multipart/form-data", "no boundary"),
        (part() + END, "multipart/form-data; boundary=", "no boundary"),
        (part() + END, f"multipart/form-data; boundary={'b' * 300}", "cannot be parsed"),
        (b"--boundary, \r\n" + part() + END, FORM, "cannot be parsed"),
        (b"--boundary\r\nA: b", FORM, "ends before"),
        (b"--boundary", FORM, "ends before"),
        (b"--boundary\r\n: no name\r\n\r\n" + END, FORM, "cannot be parsed"),
        (b"--boundary\r\nA" + b"a" * 5000 + b": b\r\n\r\n", FORM, "cannot be parsed"),
        (b"--boundary\r\n" + b"A: b\r\n" * 50 + b"\r\n", FORM, "cannot be parsed"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, content_type: str | None, message: str) -> None:
    with pytest.raises(MalformedRequest, match=message):
        read([body], content_type)


def test_too_many_parts_are_refused() -> None:
    other = part(b"x", 'form-data; name="x"')
    assert read([other * (MAX_PARTS - 1) + part() + END]) == IMAGE
    with pytest.raises(TooLarge, match=str(MAX_PARTS)):
        read([other * MAX_PARTS + part() + END])
