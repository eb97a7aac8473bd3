"""Embedding: the vector that stands for an image, the whole way from a file to an answer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from pthserve import CardError, Embedding
from pthserve.files.golden import Golden
from pthserve.loading.load import load
from pthserve.tasks.embedding import EmbeddingTask

from ..http_service import Service
from .asking import SETTINGS, packed_and_served, predicted, same_over_both
from .nets import IMAGES, SPEC, folder, reference, tensors, weights

UNIT, PLAIN = EmbeddingTask(3, normalize=True), EmbeddingTask(3)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """PyTorch's normalised vectors of the images."""
    return torch.nn.functional.normalize(reference(weights(6))).numpy()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, expected: np.ndarray) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("embedding")
    golden = [{"image": f"{number}.png", "vector": row.tolist()} for number, row in enumerate(expected)]
    source = folder(path / "source", weights(6), task="embedding", normalize=True, golden=golden)
    with packed_and_served(source, path / "pack") as started:
        yield started


@pytest.mark.slow
def test_predict_gives_the_vector(service: Service, expected: np.ndarray) -> None:
    for answer, row in zip(predicted(service), expected, strict=True):
        assert answer["task"] == "embedding"
        np.testing.assert_allclose(answer["embedding"], row, atol=1e-5)


def test_the_open_inference_protocol_has_the_vectors(service: Service, expected: np.ndarray) -> None:
    found = same_over_both(service)
    assert list(found) == ["embedding"]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-5)


def test_info_has_the_dimensions_and_there_is_nothing_to_explain(service: Service) -> None:
    info = service.client.get("/info").json()
    assert info["task"] == {"name": "embedding", "dimensions": 6, "normalize": True}
    assert (info["labels"], info["explain"]) == ([], False)
    assert info["golden"] == {"images": 3, "result": "agreed"}
    reply = service.client.post("/explain", files={"image": IMAGES["0.png"]})
    assert reply.status_code == 400
    assert "a model for embedding has no classes" in reply.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_body_without_a_head_gives_its_features_where_they_are_asked_for(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = torchvision.models.get_model(name, weights=None).eval()
    if name == "resnet18":
        module.fc = torch.nn.Identity()
    else:
        module.classifier = torch.nn.Identity()
    torch.save(module.state_dict(), tmp_path / "body.pth")
    for file, data in IMAGES.items():
        (tmp_path / file).write_bytes(data)
    (tmp_path / "model.yaml").write_text(f"preprocessing: {{resize: {SPEC.resize}, crop: {SPEC.crop[0]}}}\n")
    with pytest.raises(CardError, match=f"this is the body of {name} without a head: .* `task: embedding`"):
        load(str(tmp_path), SETTINGS)
    model = load(str(tmp_path), SETTINGS.model_copy(update={"task": "embedding"}))
    answers = model.batch([str(tmp_path / file) for file in IMAGES])
    assert all(isinstance(answer, Embedding) for answer in answers)
    with torch.no_grad():
        features = module(tensors()).numpy()
    np.testing.assert_allclose(
        np.stack([answer.vector for answer in answers]), features, atol=1e-4, rtol=1e-4
    )
    model.close()


# --- arithmetic and agreement


def vectors(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def test_vectors_are_normalised_as_torch_does_and_zero_stays_zero() -> None:
    found = UNIT.scores(vectors([3, 0, 4], [0, 0, 0]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors([0.6, 0, 0.8], [0, 0, 0]), atol=1e-7)
    np.testing.assert_array_equal(PLAIN.scores(vectors([3, 0, 4])), [[3, 0, 4]])


def test_vectors_agree_by_their_cosine_similarity() -> None:
    reference = vectors([1, 0, 0])
    found = PLAIN.agree(vectors([0.8, 0.6, 0]), reference, 0)
    assert found.differences == pytest.approx([0.2], abs=1e-6)
    assert found.same is found.clear is found.kept is None  # a vector is not a decision


def test_vectors_that_are_not_normalised_agree_by_their_length_too() -> None:
    found = PLAIN.agree(
        vectors([1.5, 0, 0], [0, 0, 0], [0, 0, 0]), vectors([1, 0, 0], [0, 0, 0], [1, 0, 0]), 0
    )
    assert found.differences == pytest.approx([0.5, 0, 1])


def test_what_is_no_number_never_agrees() -> None:
    assert UNIT.agree(vectors([np.nan, 0, 1]), vectors([1, 0, 0]), 1).differences == np.inf


def test_a_golden_image_states_the_vector() -> None:
    golden = [Golden(Path("a.png"), vector=vector) for vector in ((0.6, 0.0, 0.8), (0.8, 0.0, 0.6), (1.0,))]
    outputs = np.repeat(vectors([3, 0, 4]), 3, axis=0)
    right, wrong, short = UNIT.check_golden(outputs, golden, (), 0.02)
    assert right.reason == ""
    assert wrong.reason == "its vector has a cosine similarity of 0.9600, below 1 - 0.02"
    assert short.reason == "a vector of 1 numbers is stated, and the model gives 3"


def test_a_new_model_gives_the_same_where_vectors_are_similar() -> None:
    one, other, third = (UNIT.answer(row, ()) for row in vectors([1, 0, 0], [0.95, 0.3, 0], [0, 1, 0]))
    assert UNIT.same(one, other)
    assert not UNIT.same(one, third)
