"""Listing: which images, or archives of images, the sources of a run name, and in which order.

A source is a folder, an image, a tar archive, a list of them (one path or address a line, or a column of a
CSV file), or an address of one of these: https://, s3://, gs:// or az://.
"""

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pthserve.addresses import is_address, shown
from pthserve.errors import PthserveError, WeightsError
from pthserve.scoring.reading import Reader
from pthserve.sources.reference import STORES, WEB, Reference, parse
from pthserve.sources.transfer import retried
from pthserve.text import of_path, quoted

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jp2", ".jxl"),
)
"""Ends of the names of files that count as images. Those in the last line are of formats that are not
supported: such a file gets a row with an error, and is not silently ignored."""
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COLUMNS = ("path", "image", "url", "file", "filename", "file_name", "key")
"""Names of the column with the images, if none is given."""
_MAX_LIST = 2**32
"""Maximum size of a list in bytes."""


class Entry(NamedTuple):
    """An image or an archive. key: its name in the results. place: the path or address to read it from."""

    key: str
    place: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What the sources name, in order.

    archives: whether the entries are archives of images. skipped: number of other files in the folders.
    digest: SHA-256 of the keys in their order; of archives with their sizes, where those are known.
    """

    entries: Sequence[Entry]
    archives: bool
    skipped: int
    digest: str


class _Named(NamedTuple):
    images: list[Entry]
    archives: list[tuple[Entry, int]]
    skipped: int


def listed(sources: Sequence[str], column: str | None, reader: Reader) -> Listing:
    """Return what `sources` name.

    Args:
        column: The column of CSV lists that names the images; None for the first of COLUMNS.
        reader: Reads lists that are not on this machine.

    Raises:
        PthserveError: A source does not exist, is empty, or cannot be read; or some name images and others
            archives.
    """
    images: list[Entry] = []
    archives: list[tuple[Entry, int]] = []
    skipped = 0
    for source in sources:
        named = _of_source(source, column, reader)
        skipped += named.skipped
        if named.images:  # next to images, archives count as other files
            images += named.images
            skipped += len(named.archives)
        elif named.archives:
            archives += named.archives
        else:
            raise PthserveError(
                f"{shown(source)}: there are no images here; they are recognised by their names, such as "
                "cat.jpg, and archives by .tar"
            )
    if images and archives:
        raise PthserveError("some sources name images and others archives; score them in separate runs")
    digest = hashlib.sha256()
    for entry in images:
        digest.update(f"{entry.key}\n".encode())
    for entry, size in archives:
        digest.update(f"{entry.key} {size}\n".encode())
    entries = images or [entry for entry, _ in archives]
    return Listing(entries, bool(archives), skipped, digest.hexdigest())


def kind(name: str) -> str:
    """Return `image`, `archive` or `other`, by the end of a file's name."""
    name = name.lower()
    if name.endswith(ARCHIVE_SUFFIXES):
        return "archive"
    return "image" if name.endswith(IMAGE_SUFFIXES) else "other"


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path begins with a dot, as those that macOS adds to archives do."""
    return any(part.startswith(".") for part in path.split("/"))


def _of_source(source: str, column: str | None, reader: Reader) -> _Named:
    try:
        reference = parse(source)
    except WeightsError as error:
        raise PthserveError(str(error)) from error
    if reference is not None:
        return _at_address(reference, column, reader)
    if os.path.isdir(source):  # noqa: PTH112
        files = sorted(_below(source, ""))
        return _sorted_out((name, f"{source.rstrip('/')}/{name}", _size(source, name)) for name in files)
    if not os.path.exists(source):  # noqa: PTH110
        raise PthserveError(f"{source}: no such file or folder")
    if kind(source) == "other":
        return _in_list(source, reader(source, _MAX_LIST), column)
    return _alone(source, _size(source))


def _below(folder: str, inside: str) -> Iterator[str]:
    """Paths of all files below a folder, relative to it; links to folders are not followed."""
    try:
        with os.scandir(f"{folder}/{inside}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _below(folder, f"{inside}{entry.name}/")
                elif not entry.is_dir():
                    yield f"{inside}{entry.name}"
    except OSError as error:
        raise PthserveError(f"{folder}/{inside}: cannot be listed: {error.strerror}") from error


def _size(folder: str, name: str = "") -> int:
    """Return the size of an archive in bytes; 0 for other files, whose size is not needed."""
    if kind(name or folder) != "archive":
        return 0
    path = Path(folder, name)
    try:
        return path.stat().st_size
    except OSError as error:
        raise PthserveError(f"{path}: cannot be read: {error.strerror}") from error


def _sorted_out(files: Iterable[tuple[str, str, int]]) -> _Named:
    """Separate images, archives and others. files: path below the folder, path or address, and size."""
    images, archives, skipped = [], [], 0
    for name, place, size in files:
        what = "other" if is_hidden(name) else kind(name)
        if what == "image":
            images.append(Entry(of_path(place), place))
        elif what == "archive":
            archives.append((Entry(of_path(place), place), size))
        else:
            skipped += 1
    return _Named(images, archives, skipped)


def _alone(place: str, size: int) -> _Named:
    entry = Entry(of_path(place), place)
    if kind(urlsplit(place).path if is_address(place) else place) == "archive":
        return _Named([], [(entry, size)], 0)
    return _Named([entry], [], 0)


def _at_address(reference: Reference, column: str | None, reader: Reader) -> _Named:
    if reference.scheme in WEB:
        if kind(reference.path) == "other":
            return _in_list(reference.text, reader(reference.text, _MAX_LIST), column)
        return _alone(reference.text, 0)
    if reference.scheme not in STORES:
        raise PthserveError(
            f"{reference}: images are read from https://, s3://, gs:// and az://; download these first"
        )
    try:
        objects = retried(lambda: _objects(reference), str(reference))
    except WeightsError as error:
        raise PthserveError(str(error)) from error
    root = f"{reference.scheme}://{reference.host}"
    key = reference.path.rstrip("/")
    if len(objects) == 1 and objects[0][0] == key:
        place = f"{root}/{key}"
        if kind(key) == "other":
            return _in_list(place, reader(place, _MAX_LIST), column)
        return _alone(place, objects[0][1])
    inside = f"{key}/" if key else ""
    return _sorted_out((path.removeprefix(inside), f"{root}/{path}", size) for path, size in sorted(objects))


def _objects(reference: Reference) -> list[tuple[str, int]]:
    """Return key and size of the object at the key, or of all objects below it if there is none."""
    import obstore

    from pthserve.sources import object_stores

    store = object_stores.connected(reference)
    key = reference.path.rstrip("/")
    with object_stores.errors(reference):
        if key and not reference.path.endswith("/"):
            try:
                return [(key, obstore.head(store, key)["size"])]
            except FileNotFoundError:
                pass
        return [
            (one["path"], one["size"])
            for batch in obstore.list(store, prefix=key or None)
            for one in batch
            if not one["path"].endswith("/")
        ]


def _in_list(source: str, content: bytes, column: str | None) -> _Named:
    """The entries of a list; relative paths are relative to its folder."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PthserveError(
            f"{shown(source)}: is neither a folder nor a list in UTF-8, and does not have the name of an "
            "image or archive"
        ) from error
    path = urlsplit(source).path if is_address(source) else source
    if path.lower().endswith((".csv", ".tsv")):
        names = _in_column(source, text, "\t" if path.lower().endswith(".tsv") else ",", column)
    else:
        if column is not None:
            raise PthserveError(f"{shown(source)}: --column is for lists whose names end in .csv or .tsv")
        names = [name for line in text.splitlines() if (name := line.strip())]
    base = source.partition("?")[0] if is_address(source) else source
    folder = base.rpartition("/")[0]
    named = [(name, _place(name, folder, listed_at=source)) for name in names]
    archives = [kind(urlsplit(name).path if is_address(name) else name) == "archive" for name in names]
    if any(archives) and not all(archives):
        raise PthserveError(f"{shown(source)}: names both images and archives; make one list for each")
    if any(archives):
        sizes = [0 if is_address(place) else _size(place) for _, place in named]
        return _Named([], [(Entry(*one), size) for one, size in zip(named, sizes, strict=True)], 0)
    return _Named([Entry(*one) for one in named], [], 0)


def _place(name: str, folder: str, listed_at: str) -> str:
    """Return where an entry is read from. A list at an address may not name files of this machine."""
    if is_address(name):
        return name
    if is_address(listed_at) and (name.startswith("/") or ".." in name.split("/")):
        raise PthserveError(
            f"{shown(listed_at)}: {quoted(name)} is neither an address nor a path below the list's folder"
        )
    return os.path.join(folder, name)  # noqa: PTH118


def _in_column(source: str, text: str, delimiter: str, column: str | None) -> list[str]:
    try:
        rows = [row for row in csv.reader(text.splitlines(keepends=True), delimiter=delimiter) if row]
    except csv.Error as error:
        raise PthserveError(f"{shown(source)}: is not a valid CSV file: {quoted(error)}") from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    wanted = (column,) if column is not None else COLUMNS
    folded = [cell if column is not None else cell.casefold() for cell in header]
    at = next((folded.index(name) for name in wanted if name in folded), None)
    if at is None:
        names = quoted(", ".join(header), 300)
        raise PthserveError(
            f"{shown(source)}: has no column {column or 'path, image or url'}; name one of its columns with "
            f"--column: {names}"
        )
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= at or not row[at].strip():
            raise PthserveError(f"{shown(source)}: row {number} has no value in the column {header[at]}")
    return [row[at].strip() for row in rows[1:]]
