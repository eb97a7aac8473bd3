"""Search: under which preprocessing our tensors are those that a user's function returned.

Resizing and cropping are tried out, from a finite list. Normalisation is not: for each of these variations
the mean and the standard deviation follow from a linear fit of the user's values to the pixels, and what the
fit leaves says how well the pixels agree. So no combination of the two has to be tried.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from pthserve.comparison.normalisation import Fit, Floats, fit, fit_all, normalisation
from pthserve.errors import PthserveError, RequestError
from pthserve.files import regular_files
from pthserve.images.decode import Picture
from pthserve.images.preprocess import OWN_MAX_PIXELS, Pixels, crop_image
from pthserve.images.spec import ChannelOrder, Interpolation, Spec

SEARCHED = 4
"""Images that variations are tried out on. All images count in what is reported."""
LARGEST_RESIZE = 1.6
"""A shorter side of up to so many times the crop's is tried; the usual ones are 1 to 1.33 times as long."""
KEPT = 5
"""Resizes and crops that every filter is tried with."""
CLOSE = 0.05
"""Grey levels: variations whose difference is larger by no more than this count as equally good."""
FITS = 2.0
"""Grey levels: pixels that differ by less are the same image, whatever the normalisation is."""
ROUNDING = 0.5
"""Grey levels: by so little the same preprocessing differs where it rounds in other places."""
CROP_RATIOS = (0.8, 0.85, 0.875, 0.9, 0.95, 0.96)
"""Usual shares of the resized image that the crop leaves, of images that are resized to a square."""
FILTERS: tuple[tuple[Interpolation, bool], ...] = (
    ("bilinear", True),
    ("bicubic", True),
    ("bilinear", False),
    ("bicubic", False),
    ("lanczos", True),
    ("nearest", True),
    ("box", True),
    ("hamming", True),
)
"""Interpolation and antialiasing, the usual ones first."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image file, decoded.

    plain: the image as it lies in the file; upright: as its EXIF orientation turns it, which is the same
    where `oriented` is false.
    """

    plain: Image
    upright: Image
    oriented: bool

    def pixels(self, spec: Spec) -> Pixels:
        """The image resized and cropped as `spec` says: uint8 (height, width, channels)."""
        image = self.upright if spec.exif else self.plain
        return crop_image(image, replace(spec, exif=False), max_pixels=OWN_MAX_PIXELS)

    def grey(self) -> "Sample":
        """The image without its colours, still in three channels."""
        plain, upright = (image.convert("L").convert("RGB") for image in (self.plain, self.upright))
        return Sample(plain, upright, self.oriented)


@dataclass(frozen=True, slots=True)
class Variation:
    """The preprocessing that comes nearest to the user's.

    spec: mean and standard deviation are in it, unless `obstacle` says why a card cannot state them.
    levels: by how many of 255 grey levels the tensors still differ, root mean square.
    obstacle: what the user's function does that no card can state; "" where there is none.
    """

    spec: Spec
    levels: float
    obstacle: str = ""


class _Tried(NamedTuple):
    levels: float
    spec: Spec


def sample(path: Path, spec: Spec) -> Sample:
    """The image file `path`, decoded as a service decodes it.

    Raises:
        PthserveError: it cannot be read, or is no image that pthserve reads.
    """
    try:
        data = regular_files.read(path, regular_files.IMAGE)
        plain, upright = (
            Picture(data, "L" if spec.channels == 1 else "RGB", max_pixels=OWN_MAX_PIXELS, exif=exif)
            .decode()
            .image
            for exif in (False, True)
        )
    except OSError as error:
        raise PthserveError(f"{path}: {error.strerror}") from error
    except RequestError as error:
        raise PthserveError(f"{path}: {error}") from error
    same = plain.size == upright.size and plain.tobytes() == upright.tobytes()
    return Sample(plain, upright, not same)


def nearest(samples: Sequence[Sample], tensors: Sequence[Floats], spec: Spec) -> Variation:
    """The variation of `spec` that comes nearest to `tensors`; of equally good ones, the one least changed.

    samples, tensors: of the same images; the tensors are float32 (channels, height, width), all of one shape.

    Raises:
        PthserveError: no variation makes tensors of that shape out of the images.
    """
    pairs = sorted(zip(samples, tensors, strict=True), key=lambda pair: not pair[0].oriented)
    few = pairs[:SEARCHED]
    start = replace(spec, crop=tensors[0].shape[1:])
    tried: list[_Tried] = []
    chosen = (spec.interpolation, spec.antialias)
    for _ in range(2):  # a second time where another filter than the card's turned out to be nearer
        places = _scored(few[:1], _places(start, few[0][0].oriented, *chosen))
        filters = _scored(
            few,
            (
                replace(place.spec, interpolation=interpolation, antialias=antialias)
                for place in places[:KEPT]
                for interpolation, antialias in dict.fromkeys((chosen, *FILTERS))
            ),
        )
        tried += filters
        found = (filters[0].spec.interpolation, filters[0].spec.antialias)
        if found == chosen:
            break
        chosen = found
    if not tried:
        raise PthserveError("the images cannot be resized to the size of your function's tensors")
    best = min(one.levels for one in tried)
    good = [one for one in tried if one.levels <= best + CLOSE]
    nearest = min(good, key=lambda one: (changes(spec, one.spec), one.levels)).spec
    return _normalised(pairs, nearest, spec)


def changes(spec: Spec, other: Spec) -> int:
    """In how many fields two specs differ, but for mean and standard deviation."""
    return sum(
        getattr(spec, name) != getattr(other, name)
        for name in ("resize", "crop", "interpolation", "antialias", "exif", "channel_order")
    )


def _places(start: Spec, oriented: bool, interpolation: Interpolation, antialias: bool) -> Iterator[Spec]:
    """`start` with each resize that is tried, and each way to treat an EXIF orientation."""
    height, width = start.crop
    shorter = min(height, width)
    resizes: list[int | tuple[int, int] | None] = [start.resize, (height, width), None]
    resizes += range(shorter, int(shorter * LARGEST_RESIZE) + 1)
    resizes += [(round(height / ratio), round(width / ratio)) for ratio in CROP_RATIOS]
    resizes += [(int(height / ratio), int(width / ratio)) for ratio in CROP_RATIOS]
    for exif in (False, True) if oriented else (start.exif,):
        for resize in dict.fromkeys(resizes):
            yield replace(start, resize=resize, exif=exif, interpolation=interpolation, antialias=antialias)


def _scored(pairs: Sequence[tuple[Sample, Floats]], specs: Iterator[Spec]) -> list[_Tried]:
    """`specs`, each with the nearer order of its channels, nearest first."""
    tried = []
    for spec in specs:
        try:
            pixels = [one.pixels(spec) for one, _ in pairs]
        except RequestError:  # a resize that makes the image too large
            continue
        orders = (False, True) if spec.channels == 3 else (False,)
        levels = {
            swapped: np.mean(
                [
                    fit(image[..., ::-1] if swapped else image, tensor).levels
                    for image, (_, tensor) in zip(pixels, pairs, strict=True)
                ]
            )
            for swapped in orders
        }
        swapped = min(orders, key=lambda one: (levels[one], one))
        if levels[False] <= levels[swapped] + CLOSE:  # a picture without colours
            swapped = False
        other: ChannelOrder = "rgb" if spec.channel_order == "bgr" else "bgr"
        tried.append(_Tried(float(levels[swapped]), replace(spec, channel_order=other) if swapped else spec))
    return sorted(tried, key=lambda one: one.levels)


def _normalised(pairs: Sequence[tuple[Sample, Floats]], found: Spec, spec: Spec) -> Variation:
    """`found` with the mean and standard deviation that fit all images, or why a card cannot state them."""
    samples, tensors = [one for one, _ in pairs], [tensor for _, tensor in pairs]
    whole = fit_all([one.pixels(found) for one in samples], tensors)
    if found.channels == 3:
        without = fit_all([one.grey().pixels(found) for one in samples], tensors)
        if without.levels < FITS and whole.levels > max(ROUNDING, 2 * without.levels):
            return Variation(found, without.levels, "makes the image grey and repeats it in three channels")
    if whole.levels > FITS and (border := _border(tensors)):
        return Variation(found, whole.levels, f"pads the image: its tensors have {border} of one value")
    each = [fit(one.pixels(found), tensor) for one, tensor in pairs]
    if _depends_on_the_image(whole, each):
        levels = float(np.mean([one.levels for one in each]))
        return Variation(found, levels, "normalises each image by its own mean and deviation")
    values = normalisation(whole, spec)
    if values is None and whole.levels > FITS:
        return Variation(found, whole.levels)
    if values is None:
        return Variation(found, whole.levels, _unstatable(whole))
    mean, std = values
    return Variation(replace(found, mean=mean, std=std), whole.levels)


def _border(tensors: Sequence[Floats]) -> str:
    """Rows or columns at the edges that have one value in a channel, in words; "" where there are none."""
    for tensor in tensors:
        for what, lines in (("rows", tensor), ("columns", tensor.transpose(0, 2, 1))):
            flat = (np.ptp(lines, axis=2) == 0).all(0) & (lines[..., 0] == lines[:, :1, 0]).all(0)
            first = len(flat) if flat.all() else int(flat.argmin())
            last = len(flat) if flat.all() else int(flat[::-1].argmin())
            if 0 < first < len(flat) and max(first, last) > 1:
                return f"{first} {what} at the one edge and {last} at the other"
    return ""


def _depends_on_the_image(whole: Fit, each: Sequence[Fit]) -> bool:
    levels = float(np.mean([one.levels for one in each]))
    return len(each) > 1 and levels < FITS and whole.levels > max(ROUNDING, 3 * levels)


def _unstatable(found: Fit) -> str:
    if (found.slope <= 0).any():
        return "inverts the image, or gives one of its channels the same value all over"
    std = 1 / found.slope
    mean = -found.intercept * std
    shown = [", ".join(f"{value:.4g}" for value in values) for values in (mean, std)]
    return (
        f"normalises by the mean [{shown[0]}] and the deviation [{shown[1]}] of values in 0 to 1, which must "
        "be 0 to 1 themselves"
    )
