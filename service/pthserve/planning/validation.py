"""Validation: the user's own images, with their classes where these are known, to compare engines on.

The class of an image is known from the folder that it lies in, as `class/name.jpg`, or from a CSV file with a
row for each image.
"""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from pthserve.errors import EngineError
from pthserve.files import regular_files
from pthserve.files.golden import Golden
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning.crops import COUNT, MOST, Crops, images_among, images_of, of_package, photo, spaced
from pthserve.text import quoted

FEW = 20
"""Number of photos without classes from which on the photos of the package are not used too."""
_MAX_CSV = 64 * 2**20
"""Maximum size of a CSV file in bytes."""
_FILE_COLUMNS = ("image", "file", "filename", "file_name", "path", "name")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "class_index")

_log = logging.getLogger(__name__)


def read(source: Path, spec: Spec, labels: Sequence[str]) -> Crops:
    """Return the images of `source`, with their classes if all of them are known.

    Args:
        source: A folder of images, a folder with a subfolder for each class, or a CSV file.
        labels: The labels of the model's classes, or () for a task without classes.

    Raises:
        EngineError: There is no image, a row names none, or a row's class is not a class of the model.
    """
    if source.is_dir():
        return _of_folder(source, spec, labels)
    return _of_csv(source, spec, labels)


def _of_folder(folder: Path, spec: Spec, labels: Sequence[str]) -> Crops:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    classes = _classes(names, labels) if labels and not any(path.parent == folder for path in files) else None
    files = list(images_among(spaced(files, COUNT if classes is None else MOST)))
    if not files:
        raise EngineError(f"{folder}: contains no image for validation")
    if classes is None:
        if names and labels:
            _log.warning(
                "%s: its folders are not named after the model's classes, so accuracy is not compared", folder
            )
        return Crops([photo(file) for file in files], spec, "validation images", own=True)
    photos = [photo(file, classes[file.relative_to(folder).parts[0]]) for file in files]
    return Crops(photos, spec, "validation images", own=True)


def _classes(names: Sequence[str], labels: Sequence[str]) -> dict[str, int] | None:
    """Return the class of each folder name; None if they do not name classes.

    Where the model's labels are the numbers of its classes, because nobody named them, and there is a folder
    for each class, the folders are numbered in the order of their names, as torchvision's ImageFolder does.
    """
    known = {label.casefold(): index for index, label in enumerate(labels)}
    if all(name.casefold() in known for name in names):
        return {name: known[name.casefold()] for name in names}
    numbered = tuple(labels) == tuple(map(str, range(len(labels))))
    if numbered and len(names) == len(labels):
        return {name: index for index, name in enumerate(names)}
    return None


def _of_csv(file: Path, spec: Spec, labels: Sequence[str]) -> Crops:
    try:
        text = regular_files.read(file, _MAX_CSV).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except OSError as error:
        raise EngineError(f"{file}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise EngineError(f"{file}: is not a CSV file in UTF-8: {quoted(error)}") from error
    image, label, rows = _columns(rows)
    photos = []
    known = {text.casefold(): index for index, text in enumerate(labels)}
    for row in spaced(rows, MOST):
        if len(row) <= max(image, label):
            raise EngineError(f"{file}: the row {quoted(','.join(row))} needs an image and a class")
        name, text = row[image].strip(), row[label].strip()
        index = known.get(text.casefold(), int(text) if text.isdecimal() and len(text) < 9 else -1)
        if not 0 <= index < len(labels):
            raise EngineError(
                f"{file}: {quoted(text)}, the class of {quoted(name)}, is not a class of the model"
            )
        photos.append(photo(file.parent / name, index))
    if not photos:
        raise EngineError(f"{file}: names no image; each row has an image and its class")
    return Crops(photos, spec, "validation images", own=True)


def _columns(rows: list[list[str]]) -> tuple[int, int, list[list[str]]]:
    """Return the columns of the image and the class, and the rows without a header."""
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    images = [number for number, name in enumerate(header) if name in _FILE_COLUMNS]
    labels = [number for number, name in enumerate(header) if name in _LABEL_COLUMNS]
    if images and labels:
        return images[0], labels[0], rows[1:]
    return 0, 1, rows


def crops(options: ModelOptions, golden: Sequence[Golden], spec: Spec, labels: Sequence[str]) -> Crops:
    """Return the crops on which engines are compared: of the images that `options` name, or of the package's.

    Images for int8 calibration serve both purposes, every second one each. If the images are few, the golden
    images and the sample images are used too.

    Args:
        labels: The labels of the model's classes, or () for a task without classes.

    Raises:
        EngineError: The images that `options` name cannot be used.
    """
    package = of_package(golden, spec)
    if options.validation is not None:
        found = read(options.validation, spec, labels)
        if options.accuracy_drop is not None and found.origin.labels is None:
            raise EngineError(
                f"{options.validation}: --max-accuracy-drop needs the class of each image: a subfolder for "
                "each class, named as the model's labels, or a CSV file with the columns `image` and `label`"
            )
    elif options.accuracy_drop is not None:
        raise EngineError("--max-accuracy-drop needs images and their classes: set --validation")
    elif options.calibration is not None:
        files = images_of(options.calibration)[1::2]
        found = Crops([photo(file) for file in spaced(files, COUNT)], spec, "calibration images", own=True)
    else:
        return package
    if found.photos and (found.origin.labels is not None or len(found.photos) >= FEW):
        return found
    return Crops([*found.photos, *package.photos], spec, f"{found.source}, {package.source}")
