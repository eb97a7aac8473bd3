"""Images of formats that are not read are named, so that the sender knows what to convert."""

import io

import pytest
from PIL import Image

from pthserve.errors import UnsupportedImage
from pthserve.images.decode import Picture


def of(form: str) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (32, 32)).save(target, form)
    return target.getvalue()


UNSUPPORTED = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"),
    "HEIF of an iPhone": (b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic" + bytes(40), "HEIC"),
    "AVIF": (of("AVIF"), "AVIF"),
    "AVIF, another brand first": (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif" + bytes(40), "AVIF"),
    "JPEG 2000": (of("JPEG2000"), "JPEG 2000"),
    "ICO": (of("ICO"), "ICO"),
    "JPEG XL": (b"\xff\x0a" + bytes(40), "JPEG XL"),
    "Photoshop": (b"8BPS\0\1" + bytes(40), "Photoshop"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "PDF": (b"%PDF-1.7\n" + bytes(40), "PDF"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_format_that_is_not_read_is_named(case: str) -> None:
    data, name = UNSUPPORTED[case]
    with pytest.raises(
        UnsupportedImage, match=f"the image is {name}, which is not supported; send one of JPEG"
    ):
        Picture(data, "RGB", max_pixels=10**6)


@pytest.mark.parametrize("data", [b"", b"hello", b"\0\0\1\0", b"ftyp", bytes(100)])
def test_what_is_no_image_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="the data is not a supported image; send one of JPEG"):
        Picture(data, "RGB", max_pixels=10**6)
