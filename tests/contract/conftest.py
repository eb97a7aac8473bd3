"""A small model, really served, that every client is set on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.conftest import serving
from tests.linear import noise, png

from pthserve.images.preprocess import crop_pixels, normalise
from pthserve.images.spec import Spec

CARD = """\
name: pets
version: "3"
labels: [ant, bee, cat, dog, "snöwl"]
preprocessing: {resize: 72, crop: 64}
"""
SPEC = Spec(resize=72, crop=(64, 64))
PIXELS = [noise(seed, 90, 120) for seed in range(3)]
"""Three photos of one size, uint8 (height, width, 3)."""
FILES = [png(pixels) for pixels in PIXELS]
OUTPUTS = {"probabilities", "logits", "label", "class_index"}


@dataclass(frozen=True)
class Served:
    """Addresses of a service: http://host:port, and host:port for gRPC."""

    http: str
    grpc: str


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A ResNet-18 with seeded weights, over HTTP and gRPC."""
    import torch
    import torchvision

    folder = tmp_path_factory.mktemp("pets")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), folder / "resnet18.pth")
    (folder / "model.yaml").write_text(CARD)
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(folder, log, "--grpc-port", "0", "--precision", "fp32") as address:
        match = re.search(r"listening for gRPC on (\S+)", log.read_text())
        assert match, log.read_text()
        yield Served(address, match[1])


@pytest.fixture(scope="session")
def expected(served: Served) -> dict[str, Any]:
    """What /predict says of the images."""
    answers = [httpx.post(f"{served.http}/predict", files={"image": file}).json() for file in FILES]
    probabilities = [answer["probabilities"] for answer in answers]
    assert len({tuple(row) for row in probabilities}) == len(FILES)
    return {
        "probabilities": np.array(probabilities, np.float32),
        "label": [answer["label"] for answer in answers],
        "class_index": [answer["class_index"] for answer in answers],
    }


def tensors() -> NDArray[np.float32]:
    """The images as a client would preprocess them: float32 (3, 3, 64, 64)."""
    return normalise(np.stack([crop_pixels(pixels, SPEC) for pixels in PIXELS]), SPEC)


def inputs() -> dict[str, tuple[str, NDArray[Any]]]:
    """The images in each form that an input may have: its datatype, and its elements."""
    return {
        "images": ("BYTES", np.array(FILES, np.object_)),
        "pixels": ("UINT8", np.stack(PIXELS)),
        "tensors": ("FP32", tensors()),
    }


def close(answered: dict[str, NDArray[Any]], expected: dict[str, Any]) -> None:
    """Assert that a client's arrays are the `expected` numbers."""
    assert answered.keys() == OUTPUTS
    np.testing.assert_allclose(answered["probabilities"], expected["probabilities"], atol=1e-6)
    odds = np.exp(answered["logits"])
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), expected["probabilities"], atol=1e-6)
    assert answered["class_index"].tolist() == expected["class_index"]
    labels = [label.decode() if isinstance(label, bytes) else label for label in answered["label"].tolist()]
    assert labels == expected["label"]
