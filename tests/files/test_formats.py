"""What a file is, by its bytes: the formats that are served, and what is said of the others."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pthserve.errors import WeightsError
from pthserve.files import formats, inert

STATE = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2)}


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer, of at most 127 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


ONNX = field(1, 8) + field(2, b"pytorch") + field(7, b"graph") + field(8, b"\x10\x12")


def graph_def(nodes: int) -> bytes:
    """A frozen graph of TensorFlow."""
    node = field(1, b"dense/kernel") + field(2, b"Const") + field(5, b"value")
    return field(1, node) * nodes + field(4, field(1, 27))


def exported() -> bytes:
    """What `torch.export.save` writes."""
    module = nn.Linear(2, 2).eval()
    target = io.BytesIO()
    torch.export.save(torch.export.export(module, (torch.ones(1, 2),)), target)
    return target.getvalue()


def saved(legacy: bool = False) -> bytes:
    target = io.BytesIO()
    torch.save(STATE, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def safetensors() -> bytes:
    from safetensors.torch import save

    return save(STATE)


def archive(**parts: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        for name, data in parts.items():
            made.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return target.getvalue()


def arrays() -> bytes:
    target = io.BytesIO()
    np.savez(target, a=np.ones(3))
    return target.getvalue()


def script() -> bytes:
    target = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), target)
    return target.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "form"),
    [
        (saved, formats.ZIP),
        (lambda: saved(legacy=True), formats.LEGACY),
        (safetensors, formats.SAFETENSORS),
        (exported, formats.PT2),
        (lambda: ONNX, formats.ONNX),
        (lambda: field(7, b"graph") + field(1, 8), formats.ONNX),
    ],
    ids=["zip", "legacy", "safetensors", "pt2", "onnx", "onnx in another order"],
)
def test_a_format_is_told_by_the_bytes_whatever_the_name_says(
    make: Callable[[], bytes], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.html"
    path.write_bytes(make())
    assert formats.detect(path) == form


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a web page": (lambda: b"\n<!DOCTYPE html><html>Sign in</html>", "web page.*download it again"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(60), "compressed by gzip; unpack it"),
    "Keras, HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(60), "Keras writes.*tf2onnx"),
    "Keras, zip": (
        lambda: archive(config_dot_json=b"{}", model_dot_weights_dot_h5=b"x"),
        "is a Keras model.*tf2onnx",
    ),
    "SavedModel": (lambda: field(1, 1) + field(2, b"meta graph"), "TensorFlow SavedModel.*tf2onnx"),
    "GraphDef": (lambda: graph_def(3), r"TensorFlow graph \(GraphDef\).*tf2onnx"),
    "GraphDef of many nodes": (lambda: graph_def(formats.FIELDS + 5), r"TensorFlow graph \(GraphDef\)"),
    "TensorFlow Lite": (lambda: b"\x20\0\0\0TFL3" + bytes(60), "TensorFlow Lite"),
    "numpy": (lambda: b"\x93NUMPY\x01\0" + bytes(60), "numpy array.*torch.save"),
    "numpy, several": (arrays, r"numpy arrays \(.npz\).*as_tensor"),
    "TorchScript": (script, r"TorchScript archive, which carries code.*torch\.export\.save"),
    "TorchServe": (lambda: archive(**{"MAR-INF__MANIFEST_dot_json": b"{}"}), "TorchServe archive"),
    "any zip": (lambda: archive(a=b"x"), "zip archive that PyTorch did not write"),
    "compiled code": (
        lambda: archive(m__archive_format=b"pt2", m__data__aotinductor__model__x_dot_so=b"\x7fELF"),
        "compiled code of AOTInductor.*torch.export.save",
    ),
    "ONNX cut short": (lambda: ONNX[:-6], "truncated or damaged"),
    "GGUF": (lambda: b"GGUF" + bytes(60), "GGUF"),
    "OpenVINO": (lambda: b'<?xml version="1.0"?>\n<net name="m" version="11">', "OpenVINO model"),
    "text": (lambda: b"hello world, these are no weights", "neither a torch.save file nor safetensors"),
    "a truncated zip": (lambda: saved()[:300], "truncated or damaged"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", FOREIGN)
def test_what_cannot_be_served_is_named_with_the_way_on(case: str, tmp_path: Path) -> None:
    make, message = FOREIGN[case]
    path = tmp_path / "model.pth"
    path.write_bytes(make())
    with pytest.raises(WeightsError, match=message) as caught:
        formats.detect(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        formats.detect(tmp_path)
    with pytest.raises(WeightsError, match="No such file"):
        formats.detect(tmp_path / "gone.pth")


def test_a_directory_of_millions_of_parts_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    data = saved()
    end = data.rindex(b"PK\x05\x06")
    path.write_bytes(data[: end + 12] + struct.pack("<I", 2**31) + data[end + 16 :])
    with pytest.raises(WeightsError, match="lists its tensors in 2147483648 bytes"):
        formats.detect(path)


def test_a_header_of_safetensors_is_bounded(tmp_path: Path) -> None:
    header = json.dumps({f"{n}.w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(2)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", inert.BYTES + 1) + header.encode().ljust(inert.BYTES + 1))
    with pytest.raises(WeightsError, match="lists its tensors in 8388609 bytes"):
        formats.detect(path)
    save_file(STATE, path)
    assert formats.detect(path) == formats.SAFETENSORS
