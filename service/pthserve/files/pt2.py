"""PT2: read archives of `torch.export.save` (.pt2) as data: a program in JSON, and tensors as plain bytes.

`torch.export.load` unpickles the entries that an archive declares as pickles, evaluates its symbolic
expressions as Python, and looks up its operators by attribute. None of that is done here: pickles are
refused, expressions are not read, and `zoos.operators` lists the operators that a program may call.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from pthserve.errors import WeightsError
from pthserve.files import documents
from pthserve.text import quoted

PROGRAM = 64 * 2**20
"""Maximum size of the program in bytes; that of a vision transformer with 24 layers has 2 million."""
TENSORS = 10_000
"""Maximum number of tensors."""
DIMENSIONS = 16
"""Maximum number of dimensions of a tensor."""
MAJOR = 8
"""The supported major version of the schema, which PyTorch 2.4 and later write."""
_AGAIN = "export it again with PyTorch 2.9 or later: `torch.export.save(program, 'model.pt2')`"

# Bytes per value, by the ScalarType of torch._export.serde.schema.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it is stored.

    Attributes:
        data: The bytes of its storage, which several tensors may share.
        dtype: A key of SIZES.
        sizes: The size of each dimension.
        strides: The stride of each dimension, in values.
        offset: The first value of the tensor in `data`, in values.
    """

    data: bytearray
    dtype: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The program as parsed JSON, and its tensors by name: `weights` with the buffers, and `constants`."""

    program: Mapping[str, Any]
    weights: Mapping[str, Stored]
    constants: Mapping[str, Stored]


def read(file: IO[bytes]) -> Archive:
    """Return the archive in `file`.

    `formats.of` must have checked before that its entries are neither compressed nor overlapping.

    Raises:
        WeightsError: It contains a pickle or several programs, has another version, or is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(archive)
    except WeightsError:
        raise
    except Exception as error:  # damaged archives and JSON cause many types of errors
        raise WeightsError(
            f"is truncated or damaged ({quoted(error, 200)}); save or download it again"
        ) from error


def _read(archive: zipfile.ZipFile) -> Archive:
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    programs = [name for name in names if name.startswith("models/") and name.endswith(".json")]
    if "archive_format" not in names or not programs:
        raise WeightsError(f"was written by a PyTorch before 2.9; {_AGAIN}")
    if len(programs) > 1:
        found = ", ".join(quoted(name) for name in programs[:4])
        raise WeightsError(f"holds {len(programs)} programs ({found}); save the one to serve on its own")
    if archive.getinfo(names[programs[0]]).file_size > PROGRAM:
        raise WeightsError(f"describes its program in more than {PROGRAM} bytes")
    program = documents.parse_json(archive.read(names[programs[0]]).decode())
    version = program["schema_version"]["major"]
    if version != MAJOR:
        raise WeightsError(f"has the version {quoted(version)} of its format, and {MAJOR} is read; {_AGAIN}")
    model = programs[0].removeprefix("models/").removesuffix(".json")
    stored = [
        _tensors(archive, names, f"data/{kind}/", f"data/{kind}/{model}_{kind}_config.json")
        for kind in ("weights", "constants")
    ]
    return Archive(program, *stored)


def _tensors(
    archive: zipfile.ZipFile, names: Mapping[str, str], folder: str, listing: str
) -> dict[str, Stored]:
    if listing not in names:
        raise WeightsError(f"has no {quoted(listing)}; {_AGAIN}")
    if archive.getinfo(names[listing]).file_size > PROGRAM:
        raise WeightsError(f"lists its tensors in more than {PROGRAM} bytes")
    entries = documents.parse_json(archive.read(names[listing]).decode())["config"]
    if len(entries) > TENSORS:
        raise WeightsError(f"holds {len(entries)} tensors; the limit is {TENSORS}")
    pieces: dict[str, bytearray] = {}
    found = {}
    for name, entry in entries.items():
        meta, file = entry["tensor_meta"], str(entry["path_name"])
        if entry["use_pickle"] or meta is None:
            raise WeightsError(
                f"holds {quoted(name)} as a pickle, and to load that could run code, so nothing was loaded; "
                "export the model with plain tensors"
            )
        if file not in pieces:
            pieces[file] = bytearray(archive.read(names[folder + file]))
        found[name] = _stored(name, meta, pieces[file])
    return found


def _stored(name: str, meta: Mapping[str, Any], data: bytearray) -> Stored:
    dtype = meta["dtype"]
    sizes, strides = (tuple(_number(side) for side in meta[key]) for key in ("sizes", "strides"))
    offset = _number(meta["storage_offset"])
    if dtype not in SIZES:
        raise WeightsError(f"holds {quoted(name)} with an unsupported number type ({dtype})")
    if len(sizes) != len(strides) or len(sizes) > DIMENSIONS:
        raise WeightsError(f"holds {quoted(name)} with {len(sizes)} sizes and {len(strides)} strides")
    last = offset + sum((side - 1) * stride for side, stride in zip(sizes, strides, strict=True))
    if 0 not in sizes and (last + 1) * SIZES[dtype] > len(data):
        raise WeightsError(
            f"{quoted(name)} claims more values than the file holds; save or download it again"
        )
    return Stored(data, dtype, sizes, strides, offset)


def _number(value: Mapping[str, Any]) -> int:
    """Return a size; raises ValueError or KeyError for an expression, which is not evaluated."""
    number = value["as_int"]
    if type(number) is not int or not 0 <= number < 2**40:
        raise ValueError(f"{number!r} is not a size")
    return number
