"""Tensors: read the tensors in a file of `torch.save`, from an inert pickle, as views of the file.

There are two formats. A zip archive has the pickle in `data.pkl` and each storage in its own record. The
legacy format has five pickles in a row, followed by the storages. Declared lengths are not trusted: each
storage must be inside the file, and each tensor inside its storage.
"""

import mmap
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from pthserve.errors import WeightsError
from pthserve.files import inert
from pthserve.text import quoted

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage

TIMES = 8
"""Maximum size of all tensors together, as a multiple of the file's size: tensors may share storages."""

_DIMENSIONS = 64
_NUMBER = 2**62
"""Maximum of a size, stride or offset: torch computes with 64 bits."""
_OTHER_BYTE_ORDER = (
    "was saved on a machine with a different byte order; save it again on a little-endian machine"
)
_WRAPPERS = 8
"""Maximum number of nested calls around a tensor; a parameter of a subclass of Tensor has three."""

_DTYPES = {
    "BFloat16": "bfloat16",
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "Int": "int32",
    "Long": "int64",
    "Short": "int16",
    "Untyped": "uint8",
    "_Untyped": "uint8",
}
"""Types by the name of a storage's class without `Storage`."""
_ITEMS = {
    **dict.fromkeys(("complex128",), 16),
    **dict.fromkeys(("complex64", "float64", "int64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1
    ),
}
"""Bytes per value of each supported type."""
_ODD = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "on the meta device, without values",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "from another device",
}
_OUTER = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
}
"""Calls whose first argument is a tensor."""
_REBUILD = ("torch._utils._rebuild_", "torch._tensor._rebuild_")
"""Prefixes of the names of all functions that create tensors."""
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
"""A call with a function, a class and the arguments of the function."""
_WITH_TYPE = "torch._utils._rebuild_tensor_v3"
_PLAIN = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", _WITH_TYPE}
"""Calls that create a tensor from a storage, an offset, a shape and strides. The last one also has the type,
two arguments later, since its storage is counted in bytes."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as a pickle describes it.

    Attributes:
        key: The key of the stored bytes in the file.
        dtype: The type of its values, without `torch.`.
        count: Number of values.
        first: The first value of this storage in the stored bytes, of which it may be a part.
    """

    key: str
    dtype: str
    count: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a pickle describes it, before it is checked against the file.

    Attributes:
        dtype: The type without `torch.`.
        offset: The first value in the storage, in values.
        stride: The stride of each dimension, in values.
        oddity: Why it cannot be read, such as "sparse"; "" for a plain tensor.
    """

    storage: Storage | None = None
    dtype: str = ""
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    oddity: str = ""

    @property
    def ndim(self) -> int:
        """Number of dimensions; 2 for a tensor that cannot be read, whose number is unknown."""
        return 2 if self.oddity else len(self.shape)


def stored(value: Any) -> StoredTensor | None:
    """Return the tensor that the call `value` would create; None if it would not create one."""
    for _ in range(_WRAPPERS):
        match value:
            case inert.Object(name=name, args=(inner, *_)) if name in _OUTER:
                value = inner
            case inert.Object(name=name, args=(inert.Global() as function, _, tuple() as args, *_)) if (
                name == _SUBCLASS
            ):
                value = inert.Object(function.name, args)
            case inert.Object(name=name) if name in _ODD:
                return StoredTensor(oddity=_ODD[name])
            case inert.Object(name=name, args=args) if name in _PLAIN:
                return _described(args, name == _WITH_TYPE)
            case inert.Object(name=name) if name.startswith(_REBUILD):
                return StoredTensor(oddity="of a kind that is not read")
            case _:
                return None
    return None


def _described(args: tuple[Any, ...], with_type: bool) -> StoredTensor:
    """Return the tensor with these arguments."""
    match args:
        case (inert.Reference() as reference, offset, shape, stride, *more):
            storage = _storage(reference)
            dtype = more[2] if with_type and len(more) > 2 else storage and storage.dtype
            dtype = dtype.name.rpartition(".")[2] if isinstance(dtype, inert.Global) else dtype
            if any(
                isinstance(flags, dict) and flags for flags in more[2 + with_type :]
            ):  # such as {"neg": True}
                return StoredTensor(oddity="a view that computes its values")
            sizes = (offset, *_items(shape), *_items(stride))
            if storage and isinstance(dtype, str) and all(map(_is_size, sizes)):
                if dtype not in _ITEMS or storage.dtype not in _ITEMS:
                    return StoredTensor(oddity=f"of type {quoted(dtype)}")
                if len(_items(shape)) == len(_items(stride)) <= _DIMENSIONS:
                    return StoredTensor(storage, dtype, offset, tuple(_items(shape)), tuple(_items(stride)))
    return StoredTensor(oddity="described in a way that cannot be")


def _items(sizes: Any) -> tuple[Any, ...]:
    """Return sizes, which a pickle writes as a tuple or as a torch.Size of one."""
    match sizes:
        case inert.Object(name="torch.Size", args=(tuple() as inner,)):
            return inner
        case tuple():
            return sizes
    return (None,)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _NUMBER


def _storage(reference: inert.Reference) -> Storage | None:
    """Return the storage that a persistent id describes; None if it describes something else."""
    match reference.id:
        case ("storage", inert.Global() as kind, str(key) | int(key), _, int(count), *more) if _is_size(
            count
        ):
            name = kind.name.rpartition(".")[2]
            dtype = _DTYPES.get(name.removesuffix("Storage"), name.removesuffix("Storage").lower())
            match more:  # the legacy format has a view of another storage here
                case [(_, int(first), int(seen))] if _is_size(first) and _is_size(seen):
                    return Storage(str(key), dtype, seen, first)
            return Storage(str(key), dtype, count)
    return None


@dataclass(frozen=True, slots=True)
class Saved:
    """A file of `torch.save`.

    Attributes:
        root: The saved object, inert.
        places: Start and end of each storage in the file, by its key.
        memory: The mapped file.
    """

    root: Any
    places: Mapping[str, tuple[int, int]]
    memory: mmap.mmap


def read(file: IO[bytes], *, legacy: bool) -> Saved:
    """Return the content of a file of `torch.save`, a zip archive unless `legacy`.

    Raises:
        WeightsError: It is damaged or too large; the message does not name the file.
    """
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # tensors may be written to
    try:
        return _legacy(memory) if legacy else _zip(file, memory)
    except inert.BrokenPickle as error:
        raise damaged(str(error)) from error


def damaged(reason: str) -> WeightsError:
    """Return the error for a file that is damaged."""
    return WeightsError(f"is truncated or damaged ({reason}); save or download it again")


def _zip(file: IO[bytes], memory: mmap.mmap) -> Saved:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    places = {entry.filename: _place(entry, memory) for entry in entries}
    name = next(name for name in places if name.rpartition("/")[2] == "data.pkl")
    folder = name.removesuffix("data.pkl")
    order = memory[slice(*places.get(f"{folder}byteorder", (0, 0)))]
    if order not in (b"", b"little"):
        raise WeightsError(_OTHER_BYTE_ORDER)
    start, end = places[name]
    pickle = inert.read(memory[start:end])
    storages = f"{folder}data/"
    return Saved(
        pickle.value,
        {name.removeprefix(storages): place for name, place in places.items() if name.startswith(storages)},
        memory,
    )


def _place(entry: zipfile.ZipInfo, memory: mmap.mmap) -> tuple[int, int]:
    """Return start and end of the bytes of an entry, which follow its local header."""
    header = memory[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise damaged("an entry of the archive has no header")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if start + entry.file_size > len(memory):
        raise damaged("an entry of the archive ends beyond the file")
    return start, start + entry.file_size


def _legacy(memory: mmap.mmap) -> Saved:
    data = memory[: inert.BYTES + 1]
    at = 0
    values: list[Any] = []
    references: list[inert.Reference] = []
    for _ in range(5):  # a magic number, the protocol, the system, what was saved, the storages' keys
        try:
            pickle = inert.read(data, at)
        except inert.TruncatedPickle:
            inert.check_length(len(data))
            raise
        values.append(pickle.value)
        references += pickle.references
        at = pickle.end
    _, _, system, root, keys = values
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise WeightsError(_OTHER_BYTE_ORDER)
    items = {storage.key: _ITEMS.get(storage.dtype, 0) for storage in map(_storage, references) if storage}
    places = {}
    for key in keys if isinstance(keys, list) else ():
        item = items.get(str(key)) if isinstance(key, str | int) else None
        if item is None or at + 8 > len(memory):
            raise damaged("a storage is missing")
        end = at + 8 + item * int.from_bytes(memory[at : at + 8], "little")
        if end > len(memory):
            raise damaged("a storage ends beyond the file")
        places[str(key)] = (at + 8, end)
        at = end
    return Saved(root, places, memory)


def load(tensors: Mapping[str, StoredTensor], saved: Saved) -> "dict[str, Tensor]":
    """Return `tensors` as views of the file.

    Raises:
        WeightsError: A tensor is of an unsupported kind, or exceeds the file.
    """
    import torch

    storages: dict[str, UntypedStorage] = {}
    loaded = {}
    left = TIMES * len(saved.memory)
    for name, tensor in tensors.items():
        if tensor.oddity or tensor.storage is None:
            raise WeightsError(
                f"{quoted(name)} is {tensor.oddity}; save the state dict of a plain floating-point model"
            )
        left -= _size(name, tensor, tensor.storage, saved)
        if left < 0:
            raise damaged("its tensors claim many times the values that the file holds")
        key = tensor.storage.key
        if key not in storages:
            storages[key] = _memory(saved, key, _ITEMS[tensor.dtype])
        first = tensor.storage.first * _ITEMS[tensor.storage.dtype] // _ITEMS[tensor.dtype]
        view = torch.empty(0, dtype=getattr(torch, tensor.dtype))
        loaded[name] = view.set_(storages[key], first + tensor.offset, tensor.shape, tensor.stride)
    return loaded


def _size(name: str, tensor: StoredTensor, storage: Storage, saved: Saved) -> int:
    """Return the size of the tensor in bytes; raises WeightsError unless it is inside its storage."""
    start, end = saved.places.get(storage.key, (0, 0))
    item = _ITEMS[tensor.dtype]
    unit = _ITEMS[storage.dtype]
    numbers = item
    for side in tensor.shape:
        numbers *= side
    reached = 0
    if numbers:
        reached = tensor.offset + 1
        reached += sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride, strict=True))
    if (
        reached * item > storage.count * unit
        or (storage.first + storage.count) * unit > end - start
        or numbers > end - start
    ):
        raise damaged(f"{quoted(name)} declares more values than the file contains")
    return numbers


def _memory(saved: Saved, key: str, item: int) -> "UntypedStorage":
    """Return the storage `key` as a view of the file, or as a copy if it is not aligned there."""
    import torch

    start, end = saved.places.get(key, (0, 0))
    if start == end:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    if start % item == 0:
        return torch.frombuffer(
            saved.memory, dtype=torch.uint8, count=end - start, offset=start
        ).untyped_storage()
    return torch.frombuffer(bytearray(saved.memory[start:end]), dtype=torch.uint8).untyped_storage()
