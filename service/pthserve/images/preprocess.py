"""Preprocess: decode, resize and crop an image as a Spec states.

The result of `exact` is identical to that of torchvision's Resize and CenterCrop on a Pillow image. `fast`
does both in one call and decodes large JPEGs at a reduced scale; its result differs from `exact` by at most
0.3 grey levels on average over a photo.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pthserve.errors import BrokenImage, TooLarge, UnsupportedImage
from pthserve.images.cost import Cost
from pthserve.images.decode import Decoded, Picture, check_size
from pthserve.images.spec import CropRounding, Spec, centre_offset

Decode = Literal["exact", "fast"]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Prepared = NDArray[Any]
"""The input of an engine: uint8 (height, width, channels), not normalised yet; or, if the spec is not
`rounded`, float32 (channels, height, width), normalised."""

OWN_MAX_PIXELS = 2**30
"""Maximum number of pixels of an image from the model's owner: a golden, sample or calibration image."""

REDUCED_TO = 2.9
"""Minimum ratio of the size at which `fast` decodes a JPEG to the size after resizing. Larger ratios give
smaller differences from `exact`: 0.4 grey levels at 2, 0.3 at 2.9, 0.2 at 4. For a resize to 256, an image
with 3000 rows is decoded at a quarter."""
LEAST_REDUCED = 500
"""Minimum width and height in pixels at which `fast` decodes a JPEG: small photos are sharper, so the
difference would be larger, and little time would be saved."""
REDUCING_GAP = 4.0
"""`fast` first averages blocks of pixels while the image is larger than this multiple of the result, then
filters."""
_FRACTIONS = 24
"""Maximum number of bytes per channel of a pixel in `fractional`, for the result and intermediate values."""
_ANY = 2**31
"""No limit of pixels."""
_SMOOTH = {"bilinear", "bicubic", "lanczos", "hamming"}
"""Continuous filters, with which a tiny difference of position cannot change the result much."""


class Pending(NamedTuple):
    """An image that is not decoded, resized and cropped yet.

    Attributes:
        size: (width, height), according to its header.
        cost: Upper bounds of the cost of `pixels`.
        pixels: Decodes, resizes and crops the image; can be called once. Raises BrokenImage or TooLarge.
        turned: Returns, after `pixels`, whether width and height were swapped by turning the image.
    """

    size: tuple[int, int]
    cost: Cost
    pixels: Callable[[], NDArray[Any]]
    turned: Callable[[], bool] = lambda: False

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of the image after it was turned upright; valid after `pixels`."""
        return self.size[::-1] if self.turned() else self.size


def blank(spec: Spec, count: int) -> Prepared:
    """Return `count` empty images as an engine's input, in the usual shape; see `Prepared`."""
    if spec.rounded:
        return np.zeros((count, *spec.image_shape), np.uint8)
    return np.zeros((count, *spec.tensor_shape), np.float32)


def crop(data: bytes, spec: Spec, *, decode: Decode = "exact", max_pixels: int) -> Prepared:
    """Decode, resize and crop the image file `data`; see `Prepared`.

    Args:
        max_pixels: Maximum number of pixels, before and after resizing.

    Raises:
        UnsupportedImage: The format is not supported, or nothing would remain after resizing.
        BrokenImage: The image is damaged.
        TooLarge: It has too many pixels.
    """
    return pending(data, spec, decode=decode, max_pixels=max_pixels).pixels()


def pending(data: bytes, spec: Spec, *, decode: Decode = "exact", max_pixels: int) -> Pending:
    """Read only the header of the image in `data`; arguments and errors are those of `crop`."""
    fast = decode == "fast" and spec.antialias and spec.rounded and spec.interpolation in _SMOOTH
    shortest = None
    if fast and spec.resize is not None:
        shortest = max(LEAST_REDUCED, math.ceil(REDUCED_TO * np.max(spec.resize)))
    picture = Picture(data, _mode(spec), max_pixels=max_pixels, exif=spec.exif, shortest=shortest)
    decoded = (round(picture.box[2]), round(picture.box[3]))
    memory = max(picture.cost.memory, _cutting(picture.size, decoded, spec, fast, max_pixels))
    cost = Cost(memory, picture.cost.seconds)
    return Pending(
        picture.size, cost, lambda: _cut(picture.decode(), spec, fast, max_pixels), lambda: picture.turned
    )


def pending_pixels(pixels: Pixels, spec: Spec) -> Pending:
    """Return `pixels`, uint8 RGB (height, width, 3), to be resized and cropped; see `crop_pixels`."""
    height, width, _ = pixels.shape
    converting = width * height * 5 if spec.channels == 1 else 0
    memory = max(converting, _cutting((width, height), (width, height), spec, False, _ANY))
    cost = Cost(memory, width * height / 1e9)
    return Pending((width, height), cost, lambda: crop_pixels(pixels, spec))


def crop_pixels(pixels: Pixels, spec: Spec) -> Prepared:
    """Resize and crop `pixels`, uint8 RGB (height, width, 3), as `crop` with `exact`."""
    return _cut_whole(Image.fromarray(pixels, "RGB").convert(_mode(spec)), spec, _ANY)


def crop_image(image: Image.Image, spec: Spec, *, max_pixels: int) -> Prepared:
    """Resize and crop a Pillow image as `crop` with `exact`; raises as `crop_sized`."""
    return crop_sized(image, spec, max_pixels=max_pixels)[0]


def crop_sized(image: Image.Image, spec: Spec, *, max_pixels: int) -> tuple[Prepared, tuple[int, int]]:
    """Resize and crop a Pillow image as `crop` with `exact`.

    Returns:
        The result; and (width, height) of the image, after it was turned upright if the spec states that.

    Raises:
        BrokenImage: The image was not decoded yet, and is damaged.
        TooLarge: It has more than `max_pixels` pixels, before or after resizing.
    """
    check_size(image.size, max_pixels)
    try:
        upright = ImageOps.exif_transpose(image) if spec.exif else image
        converted = upright.convert(_mode(spec))
    except OSError as error:
        raise BrokenImage(f"the image is broken: {error}") from error
    return _cut_whole(converted, spec, max_pixels), converted.size


def _cut_whole(image: Image.Image, spec: Spec, max_pixels: int) -> Prepared:
    box = (0.0, 0.0, float(image.width), float(image.height))
    return _cut(Decoded(image, box, image.size), spec, fast=False, max_pixels=max_pixels)


def whole(data: bytes, spec: Spec, *, max_pixels: int) -> Image.Image:
    """Decode the image in `data` as grey or RGB, and turn it upright if `spec` states that; do not resize.

    Raises:
        UnsupportedImage: The format is not supported.
        BrokenImage: The image is damaged.
        TooLarge: It has more than `max_pixels` pixels.
    """
    return Picture(data, _mode(spec), max_pixels=max_pixels, exif=spec.exif).decode().image


def normalise(images: Pixels, spec: Spec) -> NDArray[np.float32]:
    """Normalise `images`, uint8 (n, height, width, channels), as torchvision's ToTensor and Normalize.

    Returns float32 (n, channels, height, width).
    """
    values = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.asarray(spec.mean, np.float32)[:, None, None]
    values /= np.asarray(spec.std, np.float32)[:, None, None]
    return values


def _mode(spec: Spec) -> Literal["RGB", "L"]:
    return "L" if spec.channels == 1 else "RGB"


def _cut(decoded: Decoded, spec: Spec, fast: bool, max_pixels: int) -> Prepared:
    """Resize and crop a decoded image, and order its channels as `spec` states."""
    resized = spec.resized(*decoded.size)
    if 0 in resized:
        raise UnsupportedImage(
            f"the image has {decoded.size[0]} x {decoded.size[1]} pixels, of which the model's preprocessing "
            f"would leave {resized[0]} x {resized[1]}; send one that is less narrow"
        )
    if math.prod(resized) > spec.most_resized:
        raise TooLarge(
            f"the image has {decoded.size[0]} x {decoded.size[1]} pixels, resized to {resized[0]} x "
            f"{resized[1]}; the limit is {spec.most_resized} pixels: send one that is less narrow"
        )
    if not spec.rounded:
        return fractional(np.asarray(decoded.image).reshape(*decoded.size[::-1], spec.channels), spec)
    pixels = _cut_rgb(decoded, spec, fast, max_pixels)
    return np.ascontiguousarray(pixels[..., ::-1]) if spec.channel_order == "bgr" else pixels


def _cut_rgb(decoded: Decoded, spec: Spec, fast: bool, max_pixels: int) -> Pixels:
    image, (left, top, right, bottom), (width, height) = decoded
    resized = spec.resized(width, height)
    if spec.pad is not None:
        inner = replace(spec, resize=resized[::-1], crop=resized[::-1], pad=None)
        padded = np.full(spec.image_shape, spec.pad, np.uint8)
        top, left = (-centre_offset(*each, "even") for each in zip(resized[::-1], spec.crop, strict=True))
        padded[top : top + resized[1], left : left + resized[0]] = _cut_rgb(decoded, inner, fast, max_pixels)
        return padded
    crop = resized[::-1] if spec.whole else spec.crop
    if not spec.antialias and spec.interpolation in _KERNELS:
        return _sampled(np.asarray(image).reshape(height, width, spec.channels), spec, resized, crop)

    rounding = spec.crop_rounding
    cut = (True, True) if fast else _exact_cuts(image.size, resized, crop)
    across = _axis(left, right, resized[0], crop[1], rounding, cut[0] and resized[0] != width)
    down = _axis(top, bottom, resized[1], crop[0], rounding, cut[1] and resized[1] != height)
    if across.length * max(down.length, down.end - down.start) > max_pixels:
        raise TooLarge(
            f"the image has {width} x {height} pixels, which the model's preprocessing would resize to "
            f"{resized[0]} x {resized[1]}; the limit is {max_pixels} pixels"
        )
    image = image.resize(
        (across.length, down.length),
        Image.Resampling[spec.interpolation.upper()],
        box=(across.start, down.start, across.end, down.end),
        reducing_gap=REDUCING_GAP if fast else None,
    )
    if image.size != crop[::-1]:
        x, y = across.offset, down.offset
        image = image.crop((x, y, x + crop[1], y + crop[0]))
    return np.asarray(image).reshape(*crop, spec.channels)


def _cutting(size: tuple[int, int], decoded: tuple[int, int], spec: Spec, fast: bool, max_pixels: int) -> int:
    """Return the maximum memory of `_cut` in bytes, including its input.

    Args:
        size: (width, height) at full scale.
        decoded: (width, height) of the decoded image.
    """
    pixel = 1 if spec.channels == 1 else 4
    held = decoded[0] * decoded[1] * pixel
    if not spec.rounded:
        turned = size[::-1] if spec.exif else size
        return held + _FRACTIONS * spec.channels * max(
            math.prod(spec.crop if not spec.whole else spec.resized(*one)) for one in (size, turned)
        )
    if spec.channel_order == "bgr" or spec.pad is not None:
        held += math.prod(spec.image_shape)
    if not spec.antialias and spec.interpolation in _KERNELS:
        return (
            held + 2 * spec.channels * decoded[0] * decoded[1] + 16 * spec.channels * spec.crop[0] * max(size)
        )
    most, rounding = 0, spec.crop_rounding
    for width, height in {size, size[::-1]} if spec.exif else {size}:
        to = spec.resized(width, height)
        crop = to[::-1] if spec.whole else spec.crop
        cut = (True, True) if fast else _exact_cuts((width, height), to, crop)
        across = _axis(0.0, width, to[0], crop[1], rounding, cut[0] and to[0] != width)
        down = _axis(0.0, height, to[1], crop[0], rounding, cut[1] and to[1] != height)
        between = max(across.length * (down.end - down.start), (across.end - across.start) * down.length)
        most = max(most, math.ceil(between) + across.length * down.length)
    # The results of both passes are limited to `max_pixels`; larger images are refused.
    return held + held // 4 * fast + min(most, 2 * max_pixels) * pixel


class _Axis(NamedTuple):
    """One direction of a resize and crop.

    Attributes:
        start: Start of the part of the decoded image that is resized, in pixels.
        end: End of that part.
        length: Number of pixels after resizing.
        offset: Start of the crop in these.
    """

    start: float
    end: float
    length: int
    offset: int


def _axis(start: float, end: float, resized: int, crop: int, rounding: CropRounding, cut: bool) -> _Axis:
    """Return how to resize the pixels from `start` to `end` to `resized` pixels and crop them to `crop`.

    Args:
        cut: Whether to resize only the part that the crop needs.
    """
    offset = centre_offset(resized, crop, rounding)
    if cut and crop < resized:
        scale = (end - start) / resized
        return _Axis(start + offset * scale, start + (offset + crop) * scale, crop, 0)
    return _Axis(start, end, resized, offset)


def _exact_cuts(size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int]) -> tuple[bool, bool]:
    """Return whether resizing only the part for the crop gives the same result, (across, down).

    Pillow converts the edges to float32: they must be exact, as they are along the shorter side for a resize
    to 256. And the order of Pillow's two passes must stay the same, since the first one rounds its result.
    """
    if _vertical_first(size, resized):
        return False, False
    across, down = (_is_binary_fraction(old, new) for old, new in zip(size, resized, strict=True))
    cut_width = min(crop[1], resized[0]) if across else resized[0]
    return across, down and not _vertical_first(size, (cut_width, min(crop[0], resized[1])))


def _vertical_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether Pillow 13, from (width, height) to another, starts vertically; older ones never do."""
    shrunk = size[1] - resized[1]
    return shrunk > 0 and shrunk > 2 * (size[0] - resized[0])


def _is_binary_fraction(numerator: int, denominator: int) -> bool:
    """Return whether the fraction's multiples up to `numerator` are exact in float32."""
    denominator //= math.gcd(numerator, denominator)
    return denominator & (denominator - 1) == 0 and numerator * denominator <= 2**24


def _linear(distance: Floats) -> Floats:
    return np.maximum(0, 1 - distance)


def _cubic(distance: Floats) -> Floats:
    """Keys (1981), "Cubic convolution interpolation", eq. 4 with PyTorch's a = -0.75."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return np.where(distance <= 1, near, a * (((distance - 5) * distance + 8) * distance - 4))


_KERNELS: dict[str, Callable[[Floats], Floats]] = {"bilinear": _linear, "bicubic": _cubic}
"""Filters for `antialias=False`: functions from the distance of a pixel, 0 to 2, to its weight."""


def _taps(
    length: int, resized: int, crop: int, rounding: CropRounding, kernel: Callable[[Floats], Floats]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the 4 of `length` pixels that each of `crop` pixels depends on, and their weights.

    Both arrays have the shape (4, crop).
    """
    target = np.arange(crop) + centre_offset(resized, crop, rounding)
    source = (target + 0.5) * (length / resized) - 0.5
    taps = np.floor(source) + np.arange(-1, 3)[:, None]
    weights = kernel(np.abs(source - taps)) * ((target >= 0) & (target < resized))
    return taps.clip(0, length - 1).astype(np.intp), weights.astype(np.float32)


def _sampled(pixels: Pixels, spec: Spec, resized: tuple[int, int], crop: tuple[int, int]) -> Pixels:
    """Resize and crop as torchvision with a tensor and `antialias=False`: from 4 x 4 pixels per point."""
    height, width, _ = pixels.shape
    kernel = _KERNELS[spec.interpolation]
    rows = np.zeros((crop[0], *pixels.shape[1:]), np.float32)
    for index, weight in zip(*_taps(height, resized[1], crop[0], spec.crop_rounding, kernel), strict=True):
        rows += pixels[index] * weight[:, None, None]
    values = np.zeros((*crop, spec.channels), np.float32)
    for index, weight in zip(*_taps(width, resized[0], crop[1], spec.crop_rounding, kernel), strict=True):
        values += rows[:, index] * weight[:, None]
    return values.round().clip(0, 255).astype(np.uint8)


def fractional(pixels: Pixels, spec: Spec) -> NDArray[np.float32]:
    """Normalise, resize and crop as torchvision's detectors do; see `Spec.rounded`.

    They normalise first, and then resize with `torch.nn.functional.interpolate(mode="bilinear")`: from 2 x 2
    pixels per point, with coordinates in float32. The part of a crop outside the image is 0.
    `pixels` are uint8 (height, width, channels), the result float32 (channels, height, width).
    """
    height, width, channels = pixels.shape
    resized = spec.resized(width, height)
    crop = resized[::-1] if spec.whole else spec.crop
    above, below, down, rows = neighbours(height, resized[1], crop[0], spec.crop_rounding)
    left, right, across, columns = neighbours(width, resized[0], crop[1], spec.crop_rounding)
    levels = normalise(np.arange(256, dtype=np.uint8).repeat(channels).reshape(1, 256, 1, channels), spec)
    values = np.zeros((channels, *crop), np.float32)
    order = range(channels)[::-1] if spec.channel_order == "bgr" else range(channels)
    for channel, source in enumerate(order):
        plane, level = pixels[..., source], levels[0, channel, :, 0]
        upper, lower = (
            level[plane[line, left]] * (1 - across) + level[plane[line, right]] * across
            for line in (above[:, None], below[:, None])
        )
        values[channel, rows, columns] = upper * (1 - down[:, None]) + lower * down[:, None]
    return values


def neighbours(
    length: int, resized: int, crop: int, rounding: CropRounding = "even"
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], slice]:
    """Return, for each pixel of a crop that is inside the image, the two of `length` pixels around it.

    Returns:
        The indices of the first pixels; those of the second ones; the distance from the first ones, 0 to 1;
        and the slice of the crop that is inside the image.
    """
    offset = centre_offset(resized, crop, rounding)
    first, last = max(0, offset), min(resized, offset + crop)
    scale = np.float32(length) / np.float32(resized)
    source = scale * (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    source = np.maximum(source, np.float32(0))
    low = np.minimum(source.astype(np.intp), length - 1)
    high = np.minimum(low + 1, length - 1)
    return low, high, (source - low).astype(np.float32), slice(first - offset, last - offset)
