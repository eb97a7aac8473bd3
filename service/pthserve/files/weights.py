"""Weights: a file to its state dict and SHA-256, safely.

The file is copied once into memory of our own, hashed on the way, and everything after that reads the copy:
what was hashed is what is parsed, whoever writes to the file meanwhile. Tensors are views of the copy where
the format allows it (zip, safetensors), so that a large file is in memory once.
Pickles go through `torch.load(weights_only=True)`, whatever the file's name says; there is no other way in.
"""

import hashlib
import io
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pthserve.errors import WeightsError
from pthserve.files import checkpoint, formats, pickles, regular_files
from pthserve.text import quoted

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes in all."""

_CHUNK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Weights:
    """A state dict, and the file it came from.

    state_dict: name to CPU tensor, dtypes as in the file; names are as in the file too, prefixes and all.
    digest: SHA-256 of the file, 64 hexadecimal digits. size: of the file, in bytes.
    container: the key under which the state dict lay, dotted where nested; "" if it was the whole file.
    format: `zip` or `legacy` (two of `torch.save`), or `safetensors`.
    """

    state_dict: "dict[str, Tensor]"
    digest: str
    size: int
    container: str
    format: str


def read(path: Path, sha256: str | None = None, progress: Progress | None = None) -> Weights:
    """The state dict in the file at `path`.

    sha256: what the file's must be; compared before anything is parsed. progress: called as the file is read.
    Raises WeightsError, whose message says what is wrong with the file and what to do.
    """
    with _Copy() as copy:
        digest, size = _fill(copy, path, progress)
        if sha256 is not None and digest != sha256.lower():
            raise WeightsError(
                f"{path}: its SHA-256 is {digest}, but {sha256} is pinned; "
                "this is not the file that was meant, or it was changed"
            )
        form = _format(path, copy)
        root = _parse(path, copy, form)
    try:
        container, state_dict = checkpoint.unwrap(root, path.name)
        checkpoint.check(state_dict, size)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return Weights(state_dict, digest, size, container, form)


class _Copy:
    """Memory that reads as a file and has a path; gone when the last mapping of it is."""

    def __enter__(self) -> "_Copy":
        if hasattr(os, "memfd_create"):
            self.file: IO[bytes] = os.fdopen(os.memfd_create("weights"), "w+b")
            self.path = f"/proc/self/fd/{self.file.fileno()}"
        else:
            self.file = tempfile.NamedTemporaryFile()
            self.path = self.file.name
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _fill(copy: _Copy, path: Path, progress: Progress | None) -> tuple[str, int]:
    """Copy the file at `path`; its SHA-256 and size."""
    digest = hashlib.sha256()
    try:
        with regular_files.open_regular(path) as source:
            before = os.fstat(source.fileno())
            if not before.st_size:
                raise WeightsError(f"{path}: is empty; save or download it again")
            if before.st_size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
                raise WeightsError(
                    f"{path}: has {before.st_size} bytes, more than this machine's memory of {memory}"
                )
            done, chunk = 0, memoryview(bytearray(_CHUNK))
            while done <= before.st_size and (count := source.readinto(chunk)):
                digest.update(chunk[:count])
                copy.file.write(chunk[:count])
                done += count
                if progress:
                    progress(done, max(done, before.st_size))
            after = os.fstat(source.fileno())
        copy.file.flush()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder; name the .pth, .pt or .safetensors file in it") from None
    except PermissionError:
        raise WeightsError(
            f"{path}: may not be read by user {os.getuid()}; give it read permission"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read: {error.strerror}; name a .pth, .pt or .safetensors file"
        ) from error
    if (done, after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
        raise WeightsError(
            f"{path}: changed while it was read; write a new file beside it and rename that over this one"
        )
    return digest.hexdigest(), done


def _format(path: Path, copy: _Copy) -> str:
    """The format of the copy; WeightsError unless a state dict can be in it."""
    try:
        form = formats.of(copy.file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if form in (formats.PT2, formats.ONNX):
        raise WeightsError(f"{path}: is an exported model and not a state dict; no weights are read from it")
    return form


def _parse(path: Path, copy: _Copy, form: str) -> Any:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path}: reading weights needs PyTorch, which is not installed; "
            "install pthserve[build], or serve a model packed by `pthserve pack`"
        ) from None
    try:
        if form == "safetensors":
            from safetensors.torch import load_file

            return load_file(copy.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # mmap not for speed alone: it cannot reach past the end of the file, where torch's other reader
            # trusts the lengths that the pickle declares.
            return torch.load(copy.path, map_location="cpu", weights_only=True, mmap=form == "zip")
    except Exception as error:
        raise WeightsError(_what_failed(path, copy, form, error)) from error


def _what_failed(path: Path, copy: _Copy, form: str, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        refusal = pickles.refusal(_pickle(copy, form), str(error), path.name)
        if refusal:
            return f"{path}: {refusal}"
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0] or type(error).__name__
    return f"{path}: is truncated or damaged ({quoted(reason, 200)}); save or download it again"


def _pickle(copy: _Copy, form: str) -> IO[bytes]:
    """The stream of the pickle in the copy; empty where the archive around it is damaged."""
    copy.file.seek(0)
    if form == "legacy":
        return copy.file
    try:
        archive = zipfile.ZipFile(copy.file)
        return archive.open(next(name for name in archive.namelist() if Path(name).name == "data.pkl"))
    except Exception:  # zipfile raises whatever broken bytes provoke
        return io.BytesIO()
