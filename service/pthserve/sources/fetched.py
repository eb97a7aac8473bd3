"""Fetched: download a model that is named by an address, and keep it in the cache.

Downloaded models are in `downloads` of the cache folder, in a folder for each address:

incoming/          the received part of a download that is not complete
VERSION/NAME       a complete model, a file or a folder, in a folder named for its content; it does not change
record.json        the last model of the address, and the version of each of its files

The previous model of the address is kept, since a service may still use it; older ones are removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from pthserve.addresses import shown
from pthserve.errors import WeightsError
from pthserve.files import regular_files
from pthserve.files.locks import Lock
from pthserve.files.private_folder import private
from pthserve.options import ModelOptions, user_cache
from pthserve.sources import signatures
from pthserve.sources.reference import STORES, Reference, parse, safe_name
from pthserve.sources.signatures import SIGNATURE
from pthserve.sources.transfer import (
    MAX_FILES,
    Listing,
    Progress,
    Received,
    RemoteFile,
    download,
    retried,
)

_RECORD = "record.json"
_KEPT = 2
"""Number of models that are kept for one address."""


def fetched(
    source: str,
    options: ModelOptions,
    progress: Progress | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Path:
    """Return the path of a local copy of the model that `source` names; a path is returned unchanged.

    If a signature is required, it is verified, and the path of the verified private copy is returned.

    Args:
        progress: Called with the number of bytes received and the total, if it is known.
        headers: Sent to an `https://` server, in addition to the Authorization of the environment.

    Raises:
        WeightsError: It cannot be downloaded, is too large, or is not the expected one.
        SignatureError: A signature is required, and there is none that is accepted.
    """
    reference = parse(source)
    if reference is None and options.require_signature is None:
        return Path(source)
    folder = _folder(source, options)
    try:
        if options.require_signature is not None:
            _check_private(folder, source)
        folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / "lock", mode=0o666):  # several pods may share the folder
            store = _Store(folder, reference.name if reference else Path(source).resolve().name)
            if reference is None:
                found = _copied(Path(source), store, options)
            else:
                found = _brought(reference, store, options, progress, headers)
            if options.require_signature is not None:
                signatures.verify(found, options.require_signature, shown(source))
            store.tidy()
            return found
    except OSError as error:
        raise WeightsError(
            f"{shown(source)}: cannot be stored in {folder}: {error.strerror or error}; name another folder "
            "with --cache-dir"
        ) from error


def _folder(source: str, options: ModelOptions) -> Path:
    """Where the models of an address lie; what is secret in it shows in a digest only."""
    cache = options.cache_dir or user_cache()
    if cache is None:
        raise WeightsError("this user has no home folder to download to; set --cache-dir")
    name = source if parse(source) else str(Path(source).absolute())
    return cache / "downloads" / hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]


def _check_private(folder: Path, source: str) -> None:
    """Raise WeightsError if another user could change in `folder` what has been verified."""
    for one in (folder.parent, folder):
        if (trouble := private(one)) is not None:
            raise WeightsError(
                f"{shown(source)}: its signature would not protect it in {one}: {trouble}; or name another "
                "folder with --cache-dir"
            )


@dataclass(frozen=True, slots=True)
class _Record:
    """A complete model: the name of its folder, and what is known of each file that came."""

    version: str
    files: Mapping[str, Received]


class _Store:
    """The folder with the models of one address; see the module."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.incoming = folder / "incoming"
        self._arrived = folder / "incoming.json"

    def last(self) -> _Record | None:
        """The model that the address named last, if it is there."""
        record = _read(self.folder / _RECORD)
        return record if record and self.path(record).exists() else None

    def path(self, record: _Record) -> Path:
        """Where the model of a record lies."""
        return self.folder / record.version / self.name

    def arrived(self) -> dict[str, Received]:
        """The files of `incoming` that are complete."""
        record = _read(self._arrived)
        files = record.files if record else {}
        return {name: one for name, one in files.items() if (self.incoming / name).exists()}

    def note(self, files: Mapping[str, Received]) -> None:
        """Remember that these files of `incoming` are complete."""
        _write(self._arrived, _Record("", files))

    def adopt(self, content: Path, files: Mapping[str, Received]) -> Path:
        """Give `content`, a folder with the complete model, its place, and return the model's path."""
        sums = "".join(f"{files[one].sha256}  {one}\n" for one in sorted(files))
        record = _Record(hashlib.sha256(sums.encode()).hexdigest()[:32], files)
        place = self.folder / record.version
        if not self.path(record).exists():
            shutil.rmtree(place, ignore_errors=True)
            content.replace(place)
        os.utime(place)
        _write(self.folder / _RECORD, record)
        self._arrived.unlink(missing_ok=True)
        shutil.rmtree(self.incoming, ignore_errors=True)
        return self.path(record)

    def tidy(self) -> None:
        """Remove the models that the address named before the last two."""
        models = [one for one in self.folder.iterdir() if one.is_dir() and one != self.incoming]
        for old in sorted(models, key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def _read(file: Path) -> _Record | None:
    try:
        values = json.loads(file.read_text("utf-8"))
        return _Record(values["version"], {name: Received(**one) for name, one in values["files"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # as if nothing were there: it is brought again


def _write(file: Path, record: _Record) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(record)), "utf-8")
    part.replace(file)


def _brought(
    reference: Reference,
    store: _Store,
    options: ModelOptions,
    progress: Progress | None,
    headers: Sequence[tuple[bytes, bytes]],
) -> Path:
    """Bring the model from its source, as far as it is not here."""
    last = store.last()
    if last and _settled(reference, last, options):
        return store.path(last)
    if reference.scheme == "oci":
        return _pulled(reference, store, last, options, progress)
    listing = _listing(reference, options, headers)
    try:
        files = _prepared(listing, reference, options)
        if last and _unchanged(files, last):
            return store.path(last)
        return store.adopt(store.incoming, _received(files, reference, store, options.max_download, progress))
    finally:
        listing.close()


def _pulled(
    reference: Reference,
    store: _Store,
    last: _Record | None,
    options: ModelOptions,
    progress: Progress | None,
) -> Path:
    """Bring the model from a registry: its layers, and of them the files."""
    from pthserve.sources import artefact
    from pthserve.sources.registry import Registry

    with Registry(reference) as registry:
        layers = artefact.layers(registry)
        blobs = [layer.blob for layer in layers]
        if last and _unchanged(blobs, last):
            return store.path(last)
        received = _received(blobs, reference, store, options.max_download, progress)
    content = store.folder / "unpacked"
    shutil.rmtree(content, ignore_errors=True)
    (content / store.name).mkdir(parents=True)
    artefact.unpack(layers, store.incoming, content / store.name, options.max_download, reference)
    return store.adopt(content, received)


def _settled(reference: Reference, last: _Record, options: ModelOptions) -> bool:
    """Return whether the local model is current, without asking its source."""
    names = [PurePosixPath(name).name for name in last.files]
    if (
        options.require_signature is not None
        and reference.scheme != "oci"
        and not any(map(_is_signature, names))
    ):
        return False  # it was fetched when none was required
    alone = last.files.get(reference.name)
    return reference.immutable or (alone is not None and alone.sha256 == options.sha256)


def _is_signature(name: str) -> bool:
    return name == SIGNATURE or name.endswith(".sig")


def _listing(reference: Reference, options: ModelOptions, headers: Sequence[tuple[bytes, bytes]]) -> Listing:
    """The files of the model, as its source has them now."""
    plain, signed = options.sha256 is not None, options.require_signature is not None
    if reference.scheme in STORES:
        from pthserve.sources import object_stores

        return object_stores.files(reference, plain=plain, signed=signed)
    if reference.scheme == "hf":
        from pthserve.sources import hub

        return hub.files(reference, plain=plain, signed=signed)
    from pthserve.sources import web

    return web.files(reference, headers, plain=plain, signed=signed)


def _prepared(listing: Listing, reference: Reference, options: ModelOptions) -> list[RemoteFile]:
    """The files with names below the version's folder, and with the digest that the user states."""
    if not listing.is_file:
        names = [f"{reference.name}/{safe_name(one.name, reference)}" for one in listing.files]
    else:
        names = [safe_name(one.name, reference) for one in listing.files]
    files = [replace(one, name=name) for one, name in zip(listing.files, names, strict=True)]
    if listing.is_file and options.sha256 is not None:
        if files[0].sha256 not in (None, options.sha256):
            raise WeightsError(
                f"{reference} is not the expected file: its SHA-256 is {files[0].sha256}, not "
                f"{options.sha256}"
            )
        files[0] = replace(files[0], sha256=options.sha256)
    return files


def _unchanged(files: Sequence[RemoteFile], last: _Record) -> bool:
    if last.files.keys() != {one.name for one in files}:
        return False
    return all(_is_here(one, last.files[one.name]) for one in files)


def _is_here(file: RemoteFile, here: Received) -> bool:
    """Whether what is here is the file as its source has it now."""
    if file.sha256 is not None:
        return file.sha256 == here.sha256
    version = file.version or retried(lambda: _asked(file), file.address)
    return version is not None and version == here.version


def _asked(file: RemoteFile) -> str | None:
    """The version that a server says the file has; its content is not read."""
    with file.open(0, None) as stream:
        return stream.version


def _received(
    files: Sequence[RemoteFile], reference: Reference, store: _Store, most: int, progress: Progress | None
) -> dict[str, Received]:
    """Bring the files to `incoming`; those that a run before this one brought stay."""
    sizes = [one.size for one in files]
    total = sum(size or 0 for size in sizes) if None not in sizes else None
    if total is not None and total > most:
        raise WeightsError(
            f"{reference}: is {total} bytes, and at most {most} may be downloaded; raise --max-download if "
            "it is the right model"
        )
    arrived, received, there = store.arrived(), {}, 0
    for file in files:
        here = arrived.get(file.name)
        if here is None or not _is_here(file, here):
            update = None if progress is None else partial(_advance, progress, there, total)
            here = download(file, store.incoming / file.name, most - there, update)
            here = replace(here, version=file.version or here.version)
        received[file.name] = here
        there += here.size
        store.note(received)
    return received


def _advance(progress: Progress, before: int, total: int | None, there: int, of: int | None) -> None:
    progress(before + there, total if total is not None else of)


def _copied(source: Path, store: _Store, options: ModelOptions) -> Path:
    """A private copy of a model on this machine, which nobody changes once it was verified."""
    if not source.exists():
        raise WeightsError(f"{source}: no such file or folder")
    if source.is_dir():
        names = signatures.files_of(source)
        pairs = [(source / name, PurePosixPath(store.name) / name.as_posix()) for name in names]
    else:
        signature = source.with_name(f"{source.name}.sig")
        pairs = [(one, PurePosixPath(one.name)) for one in (source, signature) if one.exists()]
    if len(pairs) > MAX_FILES:
        raise WeightsError(f"{source}: has more than {MAX_FILES} files")
    shutil.rmtree(store.incoming, ignore_errors=True)
    received, room = {}, options.max_download
    for original, name in pairs:
        received[str(name)] = copy = _copy(original, store.incoming / name, room)
        room -= copy.size
    return store.adopt(store.incoming, received)


def _copy(original: Path, target: Path, room: int) -> Received:
    target.parent.mkdir(parents=True, exist_ok=True)
    with regular_files.open_regular(original) as content, target.open("wb") as output:
        digest, size = regular_files.hash_rest(content, output.write, limit=room)
    if size > room:
        raise WeightsError(f"{original}: more bytes than --max-download")
    return Received(digest, size, None)
