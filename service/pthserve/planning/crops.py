"""Crops: the images that engines are compared on, made from photos in the same way each time."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from pthserve.errors import EngineError, PackError, RequestError
from pthserve.files import regular_files
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, Prepared, crop, crop_image, pending, whole
from pthserve.images.spec import Spec

COUNT = 208
"""Number of crops where there are fewer photos: 26 batches of BATCH."""
FEW = 12
"""Number of crops where a pass is long, as of a detector: each has many objects, or thousands of places."""
BATCH = 8
"""Number of crops in one forward pass."""
MOST = 10_000
"""Maximum number of images used of a folder with labels."""
_KEPT = 256 * 2**20
"""Crops of up to so many bytes in all are made once and kept in memory."""
_LEAST_AREA = 0.25
"""Smallest share of a photo's area that a crop has."""
_LONGEST = 4 / 3
"""Largest ratio of a crop's sides, in proportion to those of the photo."""

Item = TypeVar("Item")
Read = Callable[[], bytes]
"""Reads the bytes of an image file; raises OSError or PackError."""


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file that crops are made from. name: for messages. label: index of its class, if known."""

    name: str
    read: Read
    label: int | None = None


class Origin(NamedTuple):
    """Where crops are from.

    photos: the number of photos. source: what they are. own: whether they are of the kind that the service
    will see. digest: SHA-256 of the photos and their classes. labels: the class of each photo, if all are
    known.
    """

    photos: int
    source: str
    own: bool = False
    digest: str = ""
    labels: tuple[int, ...] | None = None


@dataclass(slots=True)
class Crops:
    """Crops of `photos`, as a model sees them.

    The first crop of a photo is the photo as the service preprocesses it, but for a model whose images are
    not cropped: crops are of one shape. If there are fewer photos than `fewest`, each photo also gives parts
    of itself, preprocessed in the same way. The parts are spread evenly over size, shape and place by a
    sequence without random numbers: the same photos give the same crops.

    Attributes:
        photos: At least one.
        spec: The preprocessing.
        source: What the photos are, for people, such as `sample images`.
        own: Whether they are of the kind that the service will see.
        fewest: Number of crops where there are fewer photos.
    """

    photos: Sequence[Photo]
    spec: Spec
    source: str
    own: bool = False
    fewest: int = COUNT
    _origin: Origin | None = field(init=False, default=None, repr=False)
    _made: list[Prepared] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.spec = replace(self.spec, whole=False)

    def __len__(self) -> int:
        """Return the number of crops."""
        return max(self.fewest, len(self.photos))

    @property
    def origin(self) -> Origin:
        """Where the crops are from.

        Raises:
            EngineError: A photo cannot be read.
        """
        if self._origin is None:
            digest = hashlib.sha256()
            for photo in self.photos:
                digest.update(hashlib.sha256(self._read(photo)).digest() + f"{photo.label}\n".encode())
            known = [photo.label for photo in self.photos if photo.label is not None]
            labels = tuple(known) if len(known) == len(self.photos) else None
            self._origin = Origin(len(self.photos), self.source, self.own, digest.hexdigest(), labels)
        return self._origin

    def __iter__(self) -> Iterator[Prepared]:
        """Yield batches of at most BATCH crops, each as `Prepared` has it.

        The crops of all photos alternate, so that a part of the batches is of many photos.

        Raises:
            EngineError: A photo cannot be read.
        """
        if self._made:
            yield from self._made
            return
        number = 1 if self.spec.rounded else 4  # bytes
        keep = len(self) * math.prod(self.spec.image_shape) * number <= _KEPT
        made: list[Prepared] = []
        crops = self._crops()
        for start in range(0, len(self), BATCH):
            batch = np.stack([next(crops) for _ in range(min(BATCH, len(self) - start))])
            if keep:
                made.append(batch)
            yield batch
        self._made = made

    def _crops(self) -> Iterator[Prepared]:
        decoded: dict[int, Image.Image] = {}
        for number in range(len(self)):
            index = number % len(self.photos)
            photo = self.photos[index]
            try:
                if number < len(self.photos):
                    yield crop(self._read(photo), self.spec, max_pixels=OWN_MAX_PIXELS)
                    continue
                image = decoded.get(index)
                if image is None:
                    image = whole(self._read(photo), self.spec, max_pixels=OWN_MAX_PIXELS)
                    if 3 * image.width * image.height * len(self.photos) <= _KEPT:
                        decoded[index] = image
                yield _part(image, self.spec, number // len(self.photos))
            except RequestError as error:
                raise EngineError(f"{photo.name}: cannot be read as an image: {error}") from error

    @staticmethod
    def _read(photo: Photo) -> bytes:
        try:
            return photo.read()
        except (OSError, PackError) as error:
            raise EngineError(f"{photo.name}: cannot be read: {error}") from error


def _part(image: Image.Image, spec: Spec, number: int) -> Prepared:
    """Return part `number` of a photo, preprocessed."""
    across, down, area, shape = _point(number)
    share = _LEAST_AREA + (1 - _LEAST_AREA) * area
    ratio = _LONGEST ** (2 * shape - 1)
    width = max(1, round(image.width * min(1, math.sqrt(share * ratio))))
    height = max(1, round(image.height * min(1, math.sqrt(share / ratio))))
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    part = image.crop((left, top, left + width, top + height))
    return crop_image(part, replace(spec, exif=False), max_pixels=OWN_MAX_PIXELS)


def _point(number: int) -> tuple[float, float, float, float]:
    """Return point `number` of a sequence that fills the unit cube of four dimensions evenly.

    It is the additive recurrence R4 of M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences"
    (2018): multiples of the powers of 1/g, modulo 1, where g is the positive root of x^5 = x + 1.
    """
    root = 1.1673039782614187
    one, two, three, four = ((0.5 + number / root**power) % 1 for power in (1, 2, 3, 4))
    return one, two, three, four


def samples() -> Sequence[bytes]:
    """Return the sample images of the package, as JPEG files."""
    return [photo.read() for photo in _samples()]


def sample_images(spec: Spec) -> Prepared:
    """Return the preprocessed sample images, all of one shape, as `Prepared` has them."""
    spec = replace(spec, whole=False)
    return np.stack([crop(data, spec, max_pixels=OWN_MAX_PIXELS) for data in samples()])


def _samples() -> list[Photo]:
    folder = resources.files("pthserve.images") / "samples"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return [Photo(file.name, file.read_bytes) for file in files if file.name.endswith(".jpg")]


def of_package(golden: Sequence[Golden], spec: Spec) -> Crops:
    """Return crops of the golden images and the sample images."""
    photos = [*(Photo(str(one.image), one.read) for one in golden), *_samples()]
    return Crops(photos, spec, "golden and sample images" if golden else "sample images")


def images_among(files: Sequence[Path]) -> Iterator[Path]:
    """Yield those of `files` that start as an image of an allowed format does."""
    for file in files:
        try:
            pending(regular_files.read(file, regular_files.IMAGE), Spec(), max_pixels=OWN_MAX_PIXELS)
        except (OSError, RequestError):
            continue
        yield file


def photo(file: Path, label: int | None = None) -> Photo:
    """Return the image in `file`."""
    return Photo(str(file), lambda: regular_files.read(file, regular_files.IMAGE), label)


def images_of(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, in the order of their names."""
    return list(images_among(sorted(path for path in folder.rglob("*") if path.is_file())))


def spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of `items`, evenly spaced and in their order."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).astype(int)]
