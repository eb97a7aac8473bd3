"""Formats: detect the format of a file from its bytes, and explain what to do if it cannot be served.

The name is not used: error pages and renamed files may end in `.pth`, too.
"""

import os
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pthserve.errors import WeightsError
from pthserve.files import checkpoint, inert, regular_files
from pthserve.text import quoted

ZIP, LEGACY, SAFETENSORS, PT2, ONNX = "zip", "legacy", "safetensors", "pt2", "onnx"
"""The two formats of `torch.save`, safetensors, the format of `torch.export.save`, and ONNX."""
EXPORTED = (PT2, ONNX)
"""Formats that contain the computation in addition to the weights."""

_NODE = 4096
"""Number of bytes that are read for the name and operator of a graph's first node."""
_OPERATOR = re.compile(rb"[A-Za-z_]\w*")

FIELDS = 20_000
"""Maximum number of fields of the outermost message of an ONNX file, including functions and metadata."""

_EXPORT = f"export the model where it was made: `{checkpoint.EXPORT}`"
_SCRIPTED = 'torch.save(torch.jit.load("model.pt", "cpu").state_dict(), "weights.pth")'
_UNPACK = "unpack it, and name the weights file in it"
_FROM_TENSORFLOW = "convert the model to ONNX with tf2onnx, and serve the .onnx file"

_FOREIGN = (
    # offset, first bytes there, what such a file is, what to do
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer and not the weights",
        "fetch them with `git lfs pull`",
    ),
    (0, b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard", _UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", "unpack it, or save a file of PyTorch 0.1 again with a later one"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes", _FROM_TENSORFLOW),
    (4, b"TFL3", "a TensorFlow Lite model", "serve the model that it was converted from"),
    (4, b"ET12", "an ExecuTorch program", "serve the model that it was made from"),
    (0, b"ftrt", "a TensorRT engine", "serve the model that it was built from"),
    (0, b"GGUF", "a GGUF file", "serve the PyTorch weights that it was converted from"),
    (0, b"\x93NUMPY", "a numpy array", "save the model's state dict with `torch.save`"),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_MAGIC_NUMBER = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number in the first pickle of torch.save's legacy format."""

# Fields of the outermost messages, by number: their wire type in protocol buffers.
_VARINT, _BYTES = 0, 2
_ONNX_FIELDS = {1: _VARINT, 5: _VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _BYTES)}
_ONNX_GRAPH = 7
_SAVED_MODEL_FIELDS = {1: _VARINT, 2: _BYTES}
_GRAPH_DEF_FIELDS = {1: _BYTES, 2: _BYTES, 3: _VARINT, 4: _BYTES, 5: _BYTES}
"""Fields of TensorFlow's GraphDef; 1 is a node, which starts with a name and an operator."""


def detect(path: Path) -> str:
    """Return the format of the file at `path`: ZIP, LEGACY, SAFETENSORS, PT2 or ONNX.

    Only a small part is read: the start of the file, the directory of an archive, or a pickle.

    Raises:
        WeightsError: It has another format, which the message names with what to do; or it cannot be read.
    """
    try:
        with regular_files.open_regular(path) as file:
            return of(file, path.name)
    except OSError as error:
        raise WeightsError(f"{quoted(path)}: cannot be read: {error.strerror}") from error
    except WeightsError as error:
        raise WeightsError(f"{quoted(path)}: {error}") from error


def of(file: IO[bytes], name: str) -> str:
    """Return the format of an open file; see `detect`. Error messages do not contain its path.

    Args:
        name: The name of the file, for the command in an error message that saves it in another format.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(512)
    if not head:
        raise WeightsError("is empty; save or download it again")
    if head.startswith(b"PK\x03\x04"):
        return _of_archive(file)
    if head[8:9] == b"{" and 0 in head[4:8]:
        length = int.from_bytes(head[:8], "little")
        if length <= size:  # otherwise it is truncated, or this is not a header
            inert.check_length(length)
        return SAFETENSORS
    _refuse_foreign(head)
    if _is_onnx(file, size):
        return ONNX
    if _MAGIC_NUMBER in head[:40]:
        return LEGACY
    _refuse_pickle(file, name)
    raise WeightsError(f"is neither a torch.save file nor safetensors; it starts with {bytes(head[:12])!r}")


def _refuse_foreign(head: bytes) -> None:
    """Raise WeightsError if the first bytes are those of a known format that is not supported."""
    for offset, magic, what, advice in _FOREIGN:
        if head[offset:].startswith(magic):
            raise WeightsError(f"is {what}; {advice}")
    if b"<net name=" in head:
        raise WeightsError("is an OpenVINO model; serve the PyTorch or ONNX model that it was made from")
    if head.lstrip().lower().startswith(_PAGES):
        raise WeightsError(
            "is a web page, not a weights file (probably a login or error page); download it again"
        )


def _refuse_pickle(file: IO[bytes], name: str) -> None:
    """Raise WeightsError for a pickle that torch.save did not write."""
    file.seek(0)
    data = file.read(inert.BYTES)
    # Protocols from 2 on start with this byte; older ones may start with any byte.
    surely = data.startswith(b"\x80")
    try:
        pickle = inert.read(data)
    except inert.BrokenPickle as error:
        if surely:
            raise WeightsError(f"is truncated or damaged ({error}); save or download it again") from error
        return
    if surely or isinstance(pickle.value, inert.Object | dict | list):
        raise WeightsError(checkpoint.plain_pickle(pickle.value, name))


def _of_archive(file: IO[bytes]) -> str:
    """Return the format of a zip archive, without allocating memory for sizes that it only declares."""
    inert.check_length(directory_size(file))
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises many types for damaged archives
        raise WeightsError(f"is truncated or damaged ({error}); save or download it again") from error
    names = {entry.filename for entry in entries}
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise WeightsError(
            f"is a TorchScript archive, which carries code, and was not loaded; {_EXPORT}; or save "
            f"its weights alone: `{_SCRIPTED}`"
        )
    if "serialized_exported_program.json" in last or "archive_format" in last:
        form = PT2
    elif "data.pkl" in last:
        form = ZIP
        inert.check_length(max(entry.file_size for entry in entries if entry.filename.endswith("data.pkl")))
    else:
        raise WeightsError(_other_archive(names, last))
    held = sum(entry.file_size for entry in entries)
    if held > file.seek(0, os.SEEK_END) or any(entry.compress_type for entry in entries):
        raise WeightsError(
            f"its zip entries are compressed or overlap ({held} bytes unpacked), which PyTorch never writes; "
            "save it again"
        )
    if form == PT2 and not any(name.endswith(".json") and "aotinductor" not in name for name in names):
        raise WeightsError(f"holds compiled code of AOTInductor, which is not run; {_EXPORT}")
    return form


def _other_archive(names: set[str], last: set[str]) -> str:
    """Return the message for a zip archive that PyTorch did not write."""
    if "model.weights.h5" in last:
        return f"is a Keras model; {_FROM_TENSORFLOW}"
    if "MAR-INF/MANIFEST.json" in names:
        return "is a TorchServe archive; make a folder of it with `pthserve import`, and serve that"
    if last and all(name.endswith(".npy") for name in last):
        return (
            "holds numpy arrays (.npz); save them as tensors where they were made: "
            '`torch.save({name: torch.as_tensor(array) for name, array in arrays.items()}, "weights.pth")`'
        )
    return "is a zip archive that PyTorch did not write; unpack it if the weights are in it"


def directory_size(file: IO[bytes]) -> int:
    """Return the size in bytes that a zip archive declares for its directory; 0 if there is none.

    It must be limited, since zipfile creates an object for each entry.
    """
    start = max(0, file.seek(0, os.SEEK_END) - 22 - 2**16)
    file.seek(start)
    tail = file.read()
    end = len(tail) - 22
    if not (tail[end:].startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):
        end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        return 0
    size = int(struct.unpack_from("<I", tail, end + 12)[0])
    if end >= 20 and tail[end - 20 :].startswith(b"PK\x06\x07") and end >= 76:
        size = max(size, int(struct.unpack_from("<Q", tail, end - 76 + 40)[0]))
    return 0 if size == 2**32 - 1 else size


def _is_onnx(file: IO[bytes], size: int) -> bool:
    """Return whether `file` is an ONNX model, as far as numbers and wire types of its fields show it.

    Raises:
        WeightsError: It is a truncated ONNX model, or a model of TensorFlow.
    """
    fields, end = _fields(file, size)
    if _is_graph_def(file, fields, end, size):
        raise WeightsError(
            "is a TensorFlow graph (GraphDef); convert the model to ONNX, `python -m tf2onnx.convert "
            "--graphdef FILE --inputs ... --outputs ... --output model.onnx`, and serve the .onnx file"
        )
    if len(fields) < 2 or any(_ONNX_FIELDS.get(number) != wire for number, wire in fields.items()):
        return False
    if end > size:
        raise WeightsError("is truncated or damaged (an ONNX model); save or download it again")
    if end == size and fields == _SAVED_MODEL_FIELDS:
        raise WeightsError(f"is a TensorFlow SavedModel; {_FROM_TENSORFLOW}")
    return end == size and _ONNX_GRAPH in fields


def _is_graph_def(file: IO[bytes], fields: Mapping[int, int], end: int, size: int) -> bool:
    """Return whether the message is a TensorFlow graph, which starts with the name and operator of a node."""
    if any(_GRAPH_DEF_FIELDS.get(number) != wire for number, wire in fields.items()) or 1 not in fields:
        return False
    file.seek(0)
    head = file.read(_NODE)
    place, words = 1 + _varint(head, 1)[1], []
    for number in (1, 2):
        length, used = _varint(head, place + 1)
        if place >= len(head) or head[place] != number << 3 | _BYTES or not used:
            return False
        words.append(head[place + 1 + used : place + 1 + used + length])
        place += 1 + used + length
    return end >= min(size, _NODE) and bool(_OPERATOR.fullmatch(words[1]))


def _fields(file: IO[bytes], size: int) -> tuple[dict[int, int], int]:
    """Return the wire type of each field of the message in `file`, and the end of the last valid field."""
    fields: dict[int, int] = {}
    position = 0
    for _ in range(FIELDS):
        if position >= size:
            break
        file.seek(position)
        piece = file.read(20)
        tag, used = _varint(piece, 0)
        value, length = _varint(piece, used)
        wire = tag & 7
        if not used or not length or wire not in (_VARINT, _BYTES):
            break
        fields[tag >> 3] = wire
        position += used + length + (value if wire == _BYTES else 0)
    return fields, position


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return the number at `start` and its length in bytes; (0, 0) if it is incomplete."""
    value = 0
    for place, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, place + 1
    return 0, 0
