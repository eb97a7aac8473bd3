"""Preprocess: bytes and a Spec to pixels.

`exact` is torchvision's Resize and CenterCrop on a Pillow image, to the bit. `fast` folds the two into one
call and decodes large JPEGs at a reduced scale: within 0.3 grey levels of `exact`, on average over a photo.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pthserve.errors import BrokenImage, TooLarge, UnsupportedImage
from pthserve.images.cost import Cost
from pthserve.images.decode import Decoded, Picture, check_size
from pthserve.images.spec import CropRounding, Spec

Decode = Literal["exact", "fast"]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Prepared = NDArray[Any]
"""An image as an engine takes it: uint8 (height, width, channels), still to be normalised; or, where the spec
says that it is not `rounded`, float32 (channels, height, width), normalised."""

OWN_MAX_PIXELS = 2**30
"""Most pixels of an image that belongs to the model's owner: a golden, sample or calibration image."""

REDUCED_TO = 2.9
"""`fast` decodes a JPEG at no less than so many times the size that it is resized to. The difference from
`exact` falls with it: 0.4 grey levels at 2, 0.3 at 2.9, 0.2 at 4. For 256, 3000 rows are quartered."""
LEAST_REDUCED = 500
"""Nor to fewer pixels a side than these: small photos are sharper, differ more and gain little."""
REDUCING_GAP = 4.0
"""`fast` averages blocks of pixels as long as the image stays so many times too large, then filters."""
_FRACTIONS = 24
"""Bytes that a channel of a pixel takes at most in `fractional`: the result, and what it is made from."""
WHOLE = 8
"""An image that is not cropped may be resized to so many times the pixels of one of 4 x 3. They decide what a
pass takes, and a narrow image, resized by its shorter side, would have any number of them."""
_ANY = 2**31
"""As many pixels as there may be."""
_SMOOTH = {"bilinear", "bicubic", "lanczos", "hamming"}
"""Filters without an edge, over which a pixel that is off by a millionth would fall."""


class Pending(NamedTuple):
    """An image that is still to be decoded, resized and cropped.

    size: (width, height), as its header says. cost: what is to be done takes at most. pixels: does it, once;
    raises BrokenImage or TooLarge. turned: whether it came out with its sides swapped, once `pixels` is done.
    """

    size: tuple[int, int]
    cost: Cost
    pixels: Callable[[], NDArray[Any]]
    turned: Callable[[], bool] = lambda: False

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of the image that the model was given, once `pixels` is done."""
        return self.size[::-1] if self.turned() else self.size


def blank(spec: Spec, count: int) -> Prepared:
    """So many images as an engine takes them, of the usual shape and without content."""
    if spec.rounded:
        return np.zeros((count, *spec.image_shape), np.uint8)
    return np.zeros((count, *spec.tensor_shape), np.float32)


def crop(data: bytes, spec: Spec, *, decode: Decode = "exact", max_pixels: int) -> Prepared:
    """The image in `data`, resized and cropped, as `Prepared` has it.

    Raises UnsupportedImage, BrokenImage, or TooLarge where it has more than `max_pixels` pixels, before or
    after it is resized.
    """
    return pending(data, spec, decode=decode, max_pixels=max_pixels).pixels()


def pending(data: bytes, spec: Spec, *, decode: Decode = "exact", max_pixels: int) -> Pending:
    """`crop`, of which only the header has been read. Raises what `crop` raises."""
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
    """`crop_pixels`, before anything is done."""
    height, width, _ = pixels.shape
    converting = width * height * 5 if spec.channels == 1 else 0
    memory = max(converting, _cutting((width, height), (width, height), spec, False, _ANY))
    cost = Cost(memory, width * height / 1e9)
    return Pending((width, height), cost, lambda: crop_pixels(pixels, spec))


def crop_pixels(pixels: Pixels, spec: Spec) -> Prepared:
    """`pixels`, uint8 RGB (height, width, 3), as `crop` has them, exact."""
    return _cut_whole(Image.fromarray(pixels, "RGB").convert(_mode(spec)), spec, _ANY)


def crop_image(image: Image.Image, spec: Spec, *, max_pixels: int) -> Prepared:
    """A Pillow image as `crop` has it, exact; raises what `crop_sized` raises."""
    return crop_sized(image, spec, max_pixels=max_pixels)[0]


def crop_sized(image: Image.Image, spec: Spec, *, max_pixels: int) -> tuple[Prepared, tuple[int, int]]:
    """A Pillow image as `crop` has it, exact; and its (width, height), upright where the spec says so.

    Raises:
        BrokenImage: it is read from a file only now, and cannot be decoded.
        TooLarge: it has more than `max_pixels` pixels, before or after it is resized.
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
    """The image in `data` as it is before it is resized: grey or RGB, and upright if `spec` says so.

    Raises UnsupportedImage, BrokenImage, or TooLarge where it has more than `max_pixels` pixels.
    """
    return Picture(data, _mode(spec), max_pixels=max_pixels, exif=spec.exif).decode().image


def normalise(images: Pixels, spec: Spec) -> NDArray[np.float32]:
    """`images`, uint8 (n, height, width, channels), as torchvision's ToTensor and Normalize have them.

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
    """The image that is decoded, resized and cropped, with its channels as `spec` orders them."""
    resized = spec.resized(*decoded.size)
    if 0 in resized:
        raise UnsupportedImage(
            f"the image has {decoded.size[0]} x {decoded.size[1]} pixels, of which the model's preprocessing "
            f"would leave {resized[0]} x {resized[1]}; send one that is less narrow"
        )
    if spec.whole and spec.resize is not None and math.prod(resized) > WHOLE * math.prod(spec.crop):
        raise TooLarge(
            f"the image has {decoded.size[0]} x {decoded.size[1]} pixels, which the model's preprocessing "
            f"would resize to {resized[0]} x {resized[1]}; the limit is {WHOLE * math.prod(spec.crop)} "
            "pixels: send one that is less narrow"
        )
    if not spec.rounded:
        return fractional(np.asarray(decoded.image).reshape(*decoded.size[::-1], spec.channels), spec)
    pixels = _cut_rgb(decoded, spec, fast, max_pixels)
    return np.ascontiguousarray(pixels[..., ::-1]) if spec.channel_order == "bgr" else pixels


def _cut_rgb(decoded: Decoded, spec: Spec, fast: bool, max_pixels: int) -> Pixels:
    image, (left, top, right, bottom), (width, height) = decoded
    resized = spec.resized(width, height)
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
    """Bytes that `_cut` takes at most, with the image that it is given.

    size: (width, height) at full scale; decoded: as it was decoded. It may be turned, where `spec` says so.
    """
    pixel = 1 if spec.channels == 1 else 4
    held = decoded[0] * decoded[1] * pixel
    if not spec.rounded:
        turned = size[::-1] if spec.exif else size
        return held + _FRACTIONS * spec.channels * max(
            math.prod(spec.crop if not spec.whole else spec.resized(*one)) for one in (size, turned)
        )
    if spec.channel_order == "bgr":
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
    # What has more than `max_pixels` is refused; so is it, once for each of two steps.
    return held + held // 4 * fast + min(most, 2 * max_pixels) * pixel


def _offset(resized: int, crop: int, rounding: CropRounding) -> int:
    """Where a centre crop starts; negative where the crop is larger, and has a black border."""
    if crop > resized:
        return -((crop - resized) // 2)
    return (resized - crop) // 2 if rounding == "down" else round((resized - crop) / 2)


class _Axis(NamedTuple):
    """One direction of a resize and crop.

    start, end: what of the decoded image is resized; length: to how many pixels; offset: where in these the
    crop starts.
    """

    start: float
    end: float
    length: int
    offset: int


def _axis(start: float, end: float, resized: int, crop: int, rounding: CropRounding, cut: bool) -> _Axis:
    """How to get `crop` of `resized` pixels out of what was decoded from `start` to `end`.

    cut: whether to resize only what the crop needs.
    """
    offset = _offset(resized, crop, rounding)
    if cut and crop < resized:
        scale = (end - start) / resized
        return _Axis(start + offset * scale, start + (offset + crop) * scale, crop, 0)
    return _Axis(start, end, resized, offset)


def _exact_cuts(size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int]) -> tuple[bool, bool]:
    """Whether to resize only what the crop needs, (across, down), changes no bit of the result.

    Pillow takes the edges as float32: they must be exact, as they are along the shorter side for a resize
    to 256.
    And Pillow's two passes must keep their order: what the first one rounds shows in the second.
    """
    if _vertical_first(size, resized):
        return False, False
    across, down = (_is_binary_fraction(old, new) for old, new in zip(size, resized, strict=True))
    cut_width = min(crop[1], resized[0]) if across else resized[0]
    return across, down and not _vertical_first(size, (cut_width, min(crop[0], resized[1])))


def _vertical_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether Pillow 13 starts with the vertical pass; older ones never do. Both are (width, height)."""
    shrunk = size[1] - resized[1]
    return shrunk > 0 and shrunk > 2 * (size[0] - resized[0])


def _is_binary_fraction(numerator: int, denominator: int) -> bool:
    """Whether the fraction's multiples up to `numerator` are exact in float32."""
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
"""What `antialias=False` is defined for: the weight of a pixel at a distance of 0 to 2."""


def _taps(
    length: int, resized: int, crop: int, rounding: CropRounding, kernel: Callable[[Floats], Floats]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Which 4 of `length` pixels each of `crop` pixels is made of, and their weights: both (4, crop)."""
    target = np.arange(crop) + _offset(resized, crop, rounding)
    source = (target + 0.5) * (length / resized) - 0.5
    taps = np.floor(source) + np.arange(-1, 3)[:, None]
    weights = kernel(np.abs(source - taps)) * ((target >= 0) & (target < resized))
    return taps.clip(0, length - 1).astype(np.intp), weights.astype(np.float32)


def _sampled(pixels: Pixels, spec: Spec, resized: tuple[int, int], crop: tuple[int, int]) -> Pixels:
    """The crop as torchvision has it on a tensor with `antialias=False`: from 4 x 4 pixels at each point."""
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
    """`pixels`, uint8 (height, width, channels), as torchvision's detectors have them; see `Spec.rounded`.

    They normalise first and resize then, by `torch.nn.functional.interpolate(mode="bilinear")`: from 2 x 2
    pixels at each point, with coordinates in float32. What a crop has beyond the image is 0.
    """
    height, width, channels = pixels.shape
    resized = spec.resized(width, height)
    crop = resized[::-1] if spec.whole else spec.crop
    above, below, down, rows = neighbours(height, resized[1], crop[0], spec.crop_rounding)
    left, right, across, columns = neighbours(width, resized[0], crop[1], spec.crop_rounding)
    levels = normalise(np.arange(256, dtype=np.uint8).repeat(channels).reshape(1, 256, 1, channels), spec)
    values = np.zeros((channels, *crop), np.float32)
    order = range(channels)[::-1] if spec.channel_order == "bgr" else range(channels)
    for channel, taken in enumerate(order):
        plane, level = pixels[..., taken], levels[0, channel, :, 0]
        upper, lower = (
            level[plane[line, left]] * (1 - across) + level[plane[line, right]] * across
            for line in (above[:, None], below[:, None])
        )
        values[channel, rows, columns] = upper * (1 - down[:, None]) + lower * down[:, None]
    return values


def neighbours(
    length: int, resized: int, crop: int, rounding: CropRounding = "even"
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], slice]:
    """Between which two of `length` pixels each of the crop's is, and how far from the first, 0 to 1; and
    which of the crop's pixels these are."""
    offset = _offset(resized, crop, rounding)
    first, last = max(0, offset), min(resized, offset + crop)
    scale = np.float32(length) / np.float32(resized)
    source = scale * (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    source = np.maximum(source, np.float32(0))
    low = np.minimum(source.astype(np.intp), length - 1)
    high = np.minimum(low + 1, length - 1)
    return low, high, (source - low).astype(np.float32), slice(first - offset, last - offset)
