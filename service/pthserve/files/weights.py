"""Weights: read the state dict and the SHA-256 of a weights file safely.

The file is copied into private memory once and hashed meanwhile; only the copy is read afterwards. So the
bytes that are parsed are the bytes that were hashed, even if the file changes. Tensors are views of the copy
if the format allows it (zip, safetensors), so that a large file is in memory only once. Pickles are always
read by `inert`, which runs nothing. An exported model (.pt2, .onnx) is copied and hashed here, and read by
`zoos.exported`.
"""

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pthserve.certainty import Inferred, Origin
from pthserve.errors import WeightsError
from pthserve.files import checkpoint, documents, formats, inert, metadata, onnx_files, regular_files, tensors
from pthserve.text import quoted

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with the number of bytes read so far and the total number."""

INDEX = ".index.json"
"""The suffix of an index: the file of transformers that lists the shards of a state dict."""
SHARDS = 1000
"""Maximum number of shards of a state dict."""

_CHUNK = 4 * 2**20
_CONFIG = 2**20
"""Maximum size of an adapter's configuration in bytes."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


@dataclass(frozen=True, slots=True)
class Weights:
    """A state dict, and the file that contains it.

    Attributes:
        state_dict: CPU tensors by name, with names (prefixes included) and dtypes as in the file.
        digest: SHA-256 of the file, 64 hexadecimal digits; if there are several files, the SHA-256 of the
            output of `sha256sum` for them in the order of their names.
        size: Size of all files in bytes.
        container: The key of the state dict, dotted if nested; "" if it is the whole file.
        format: `zip` or `legacy` (both of `torch.save`), `safetensors`, `pt2` or `onnx`.
        metadata: The other content of the file as plain values; see `metadata.plain`.
        inferred: Which one of several state dicts was chosen, if the user did not state it.
        content: The copy of an exported model, which has no state dict.
        beside: Copies of an ONNX model's files with external weights, by path; included in `digest` and
            `size`.
    """

    state_dict: "dict[str, Tensor]"
    digest: str
    size: int
    container: str
    format: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inferred: tuple[Inferred, ...] = ()
    content: IO[bytes] | None = None
    beside: Mapping[str, IO[bytes]] = field(default_factory=dict)


def read(
    path: Path, sha256: str | None = None, progress: Progress | None = None, container: str | None = None
) -> Weights:
    """Read the state dict in the file at `path`, or in the shards that the index at `path` lists.

    Args:
        sha256: The expected SHA-256 (`Weights.digest`), compared before anything is parsed.
        progress: Called while the file is read.
        container: The key of the state dict, dotted if nested; None to find it.

    Raises:
        WeightsError: The message states what is wrong with the file and what to do.
    """
    _refuse_adapter(path)
    is_index = path.name.endswith(INDEX)
    files = files_of(path)
    beside: dict[str, IO[bytes]] = {}
    with ExitStack() as stack:
        copies = [stack.enter_context(_Copy()) for _ in files]
        held: list[tuple[str, int]] = []  # SHA-256 and size
        for number, (copy, file) in enumerate(zip(copies, files, strict=True)):
            before, after = sum(size for _, size in held), sum(map(_file_size, files[number + 1 :]))
            held.append(_fill(copy, file, progress and _part(progress, before, after)))
        if onnx_files.may_be(path):
            for name in _external(path, copies[0]):
                copy = stack.enter_context(_Copy())
                files.append(path.parent / name)
                held.append(_fill(copy, files[-1], progress))
                beside[name] = copy.kept()
        digest = _digest(files, held, path.parent) if len(files) > 1 else held[0][0]
        if sha256 is not None and digest != sha256.lower():
            raise WeightsError(
                f"{path}: its SHA-256 is {digest}, but {sha256} is expected; "
                "this is a different file, or it was changed"
            )
        if not is_index and (form := _format(path, copies[0])) in formats.EXPORTED:
            return Weights(
                {}, digest, sum(size for _, size in held), "", form, content=copies[0].kept(), beside=beside
            )
        parts = [
            _read(file, copy, container)
            for file, copy in zip(files, copies, strict=True)
            if not (is_index and file == path)
        ]
    whole = {name: tensor for part in parts for name, tensor in part.state_dict.items()}
    try:
        checkpoint.check_names(whole)
        checkpoint.check_values(whole)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return replace(parts[0], state_dict=whole, digest=digest, size=sum(size for _, size in held))


def files_of(path: Path) -> list[Path]:
    """Return the files that contain the weights at `path`: itself, and its shards if it is an index.

    Raises:
        WeightsError: It is one shard of several, or an index that cannot be read.
    """
    return _shards(path) if path.name.endswith(INDEX) else [_whole(path)]


def _refuse_adapter(path: Path) -> None:
    """Raise WeightsError for the weights of an adapter, with the configuration of PEFT beside it."""
    file = path.with_name("adapter_config.json")
    if not path.name.startswith("adapter_model.") or not file.is_file():
        return
    values: Any = {}
    with suppress(OSError, ValueError):
        values = documents.parse_json(regular_files.read(file, _CONFIG).decode())
    stated = values if isinstance(values, dict) else {}
    kind, base = (quoted(stated.get(key) or "?") for key in ("peft_type", "base_model_name_or_path"))
    raise WeightsError(
        f"{path}: is an adapter of PEFT ({kind}), which changes another model, {base}; merge it into that "
        'model where it was made, `model.merge_and_unload().save_pretrained("merged")`, and serve that folder'
    )


def _read(path: Path, copy: "_Copy", container: str | None) -> Weights:
    """Return the state dict in the copy of the file at `path`, without digest and size."""
    try:
        form = formats.of(copy.file, path.name)
        _check_readable(form)
        read = _safetensors if form == formats.SAFETENSORS else _saved
        return read(path, copy, form, container)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _format(path: Path, copy: "_Copy") -> str:
    try:
        return formats.of(copy.file, path.name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _external(path: Path, copy: "_Copy") -> list[str]:
    """Return the files with external weights of an ONNX model, relative to its folder."""
    try:
        return onnx_files.external(copy.file, path.name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _check_readable(form: str) -> None:
    if form in formats.EXPORTED:
        raise WeightsError("is an exported model, which cannot be a shard")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise WeightsError(
            "reading weights needs PyTorch, which is not installed; "
            "install pthserve[build], or serve a model packed by `pthserve pack`"
        ) from None


def _safetensors(path: Path, copy: "_Copy", form: str, container: str | None) -> Weights:
    from safetensors import safe_open

    try:
        with safe_open(copy.path, framework="pt") as file:
            root = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
            words = file.metadata() or {}
    except Exception as error:  # the library's own errors have no common base class
        raise tensors.damaged(quoted(error, 200)) from error
    found = checkpoint.unwrap(root, path.name, container)
    return Weights(dict(found.tensors), "", 0, found.container, form, metadata.plain(words))


def _saved(path: Path, copy: "_Copy", form: str, container: str | None) -> Weights:
    """Return the state dict in a file of torch.save."""
    saved = tensors.read(copy.file, legacy=form == formats.LEGACY)
    found = checkpoint.unwrap(saved.root, path.name, container)
    checkpoint.check_names(found.tensors)
    state_dict = tensors.load(found.tensors, saved)
    beside = metadata.plain(saved.root, found.ids)
    return Weights(state_dict, "", 0, found.container, form, beside, _inferred(found, container))


def _inferred(found: checkpoint.Found, container: str | None) -> tuple[Inferred, ...]:
    """Return which one of several state dicts was chosen, if the user did not state it."""
    if container is not None or not found.others:
        return ()
    averaged = ", a moving average" if checkpoint.AVERAGED.search(found.container) else ""
    return (
        Inferred(
            "weights",
            f"{quoted(found.container)}{averaged}; there are also {checkpoint.some(found.others)}",
            Origin.ASSUMED,
            f"container: {json.dumps(found.container)}",
        ),
    )


# --- shards


def _whole(path: Path) -> Path:
    """Return `path`; raises WeightsError if it is one shard of several, by its name."""
    match = _SHARD.fullmatch(path.name)
    if match and int(match[3]) > 1:
        index = f"{match[1]}{match[4]}{INDEX}"
        advice = (
            "name the folder" if (path.parent / index).exists() else f"put all of them and {index} beside it"
        )
        raise WeightsError(
            f"{path}: is shard {int(match[2])} of {int(match[3])} of a state dict; {quoted(advice)}"
        )
    return path


def _shards(path: Path) -> list[Path]:
    """Return the index at `path` and the shards that it lists, in the order of their names."""
    try:
        index = json.loads(regular_files.read(path, inert.BYTES))
        names = set(index["weight_map"].values())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: is not an index of shards, which has a `weight_map` of tensors and files"
        ) from error
    if not names or len(names) > SHARDS:
        raise WeightsError(f"{path}: lists {len(names)} shards; 1 to {SHARDS} are read")
    odd = next((name for name in names if not isinstance(name, str) or not _is_beside(name)), None)
    if odd is not None:
        raise WeightsError(f"{path}: {quoted(odd)} cannot be a shard; it must lie beside its index")
    files = [path, *(path.parent / name for name in names)]
    if missing := [file.name for file in files if not os.path.isfile(file)]:  # noqa: PTH113, it takes any name
        raise WeightsError(f"{path}: {checkpoint.some(sorted(missing))} of its shards are missing beside it")
    return sorted(files, key=lambda file: file.name)


def _is_beside(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".") and not name.endswith(INDEX)


def _digest(files: list[Path], held: list[tuple[str, int]], folder: Path) -> str:
    """Return the SHA-256 of what `sha256sum` prints for `files` in `folder`, in the order of their names."""
    lines = sorted(
        (file.relative_to(folder).as_posix(), digest) for file, (digest, _) in zip(files, held, strict=True)
    )
    printed = "".join(f"{digest}  {name}\n" for name, digest in lines)
    return hashlib.sha256(printed.encode("utf-8", "surrogateescape")).hexdigest()


def _file_size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _part(progress: Progress, before: int, after: int) -> Progress:
    """Return a progress function for one file that reports the bytes of all files."""
    return lambda done, total: progress(before + done, before + total + after)


# --- the copy


class _Copy:
    """A private file in memory with a path; it is freed together with its last mapping."""

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

    def kept(self) -> IO[bytes]:
        """Return the file, which stays open after this copy is closed."""
        return _Kept(os.dup(self.file.fileno()))


class _Kept(io.FileIO):
    """A file that is closed after its last reference."""

    def __del__(self) -> None:
        self.close()


def _fill(copy: _Copy, path: Path, progress: Progress | None) -> tuple[str, int]:
    """Copy the file at `path`, and return its SHA-256 and size."""
    try:
        with regular_files.open_regular(path) as source:
            before = os.fstat(source.fileno())
            if not before.st_size:
                raise WeightsError(f"{path}: is empty; save or download it again")
            if before.st_size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
                raise WeightsError(
                    f"{path}: has {before.st_size} bytes, more than this machine's memory of {memory}"
                )

            def use(piece: memoryview) -> None:
                copy.file.write(piece)
                if progress:
                    progress(copy.file.tell(), max(copy.file.tell(), before.st_size))

            digest, done = regular_files.hash_rest(source, use, piece=_CHUNK, limit=before.st_size)
            after = os.fstat(source.fileno())
        copy.file.flush()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder; give the .pth, .pt or .safetensors file in it") from None
    except PermissionError:
        raise WeightsError(f"{path}: cannot be read by user {os.getuid()}; grant read permission") from None
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read: {error.strerror}; give a .pth, .pt or .safetensors file"
        ) from error
    if (done, after.st_size, after.st_mtime_ns) != (before.st_size, before.st_size, before.st_mtime_ns):
        raise WeightsError(
            f"{path}: changed while it was being read; write updates to a new file and rename it"
        )
    return digest, done
