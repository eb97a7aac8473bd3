"""Binary: one output whose sigmoid tells two classes apart, the whole way from a file to an answer."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pthserve import Binary
from pthserve.files.golden import Golden
from pthserve.loading import packed
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import load
from pthserve.loading.manifest import FORMAT
from pthserve.loading.pack import pack
from pthserve.tasks.binary import BinaryTask

from ..http_service import Service
from .asking import SETTINGS, packed_and_served, predicted, same_over_both, tensors
from .nets import IMAGES, Functional, folder, reference, weights

LABELS = ["cat", "dog"]
TASK = BinaryTask()


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """PyTorch's probabilities of cat and dog: float32 (3, 2)."""
    positive = reference(weights(1)).sigmoid().numpy()
    return np.concatenate((1 - positive, positive), axis=1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, expected: np.ndarray) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("binary")
    golden = [
        {"image": f"{number}.png", "label": LABELS[row.argmax()], "probability": round(float(row.max()), 4)}
        for number, row in enumerate(expected)
    ]
    source = folder(path / "source", weights(1), task="binary", labels=LABELS, golden=golden)
    with packed_and_served(source, path / "pack") as started:
        yield started


@pytest.mark.slow
def test_predict_gives_one_of_two_classes(service: Service, expected: np.ndarray) -> None:
    assert len(set(expected.argmax(1))) == 2, "the images should be of both classes"
    for answer, row in zip(predicted(service), expected, strict=True):
        assert answer["task"] == "binary"
        np.testing.assert_allclose(answer["probabilities"], row, atol=1e-5)
        assert answer["class_index"] == row.argmax()
        assert answer["label"] == LABELS[row.argmax()]
        assert [one["label"] for one in answer["top"]] == [LABELS[i] for i in np.argsort(-row)]


def test_the_open_inference_protocol_has_two_probabilities_and_one_logit(
    service: Service, expected: np.ndarray
) -> None:
    found = same_over_both(service)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(found["logits"], reference(weights(1)).numpy(), atol=1e-4)
    assert found["label"] == [LABELS[row.argmax()] for row in expected]
    assert found["class_index"].tolist() == expected.argmax(1).tolist()
    ranked = tensors(service, {"name": "probabilities", "parameters": {"classification": 1}})
    assert [text.partition(":")[2] for text in ranked["probabilities"]] == [
        f"{row.argmax()}:{LABELS[row.argmax()]}" for row in expected
    ]


def test_explain_shows_what_spoke_for_each_of_the_classes(service: Service) -> None:
    headers = {"Accept": "application/json"}
    maps = []
    for index in (0, 1):
        url = f"/explain?class={index}"
        reply = service.client.post(url, files={"image": IMAGES["1.png"]}, headers=headers)
        assert reply.status_code == 200, reply.text
        assert reply.json()["label"] == LABELS[index]
        maps.append(np.array(reply.json()["map"]))
    assert maps[0].max() == maps[1].max() == 1
    assert not ((maps[0] > 0) & (maps[1] > 0)).any(), "what speaks for one class speaks against the other"


def test_info_and_golden_images_know_the_task(service: Service) -> None:
    info = service.client.get("/info").json()
    assert (info["task"], info["num_classes"]) == ({"name": "binary", "threshold": 0.5}, 2)
    assert info["golden"] == {"images": 3, "result": "agreed"}


def test_a_model_that_ends_in_a_sigmoid_with_one_output_is_binary_and_its_numbers_are_kept(
    tmp_path: Path,
) -> None:
    module = Functional(1)
    module.layers.load_state_dict(weights(1).state_dict())
    path = folder(tmp_path, weights(1), "Functional")
    torch.save(module.state_dict(), path / "net.pth")
    model = load(str(path), SETTINGS)
    answers = model.batch([str(path / name) for name in IMAGES])
    assert all(isinstance(answer, Binary) for answer in answers)
    assert model.labels == ("negative", "positive")
    found = [float(answer.probabilities[1]) for answer in answers]
    np.testing.assert_allclose(found, reference(module).numpy(), atol=1e-5)
    model.close()


@pytest.mark.slow
def test_a_threshold_decides_which_of_the_classes_is_answered(tmp_path: Path, expected: np.ndarray) -> None:
    """Screening wants few misses: from 10 % on, say, an image is positive. It holds in a pack too."""
    positives = expected[:, 1]
    low, high = float(positives.min()) / 2, float(positives.max() + 1) / 2
    for threshold, positive in ((low, 1), (high, 0)):
        golden = [{"image": "0.png", "class_index": positive}]
        path = tmp_path / str(positive)
        source = folder(path, weights(1), task="binary", labels=LABELS, threshold=threshold, golden=golden)
        made = pack(str(source), path / "packed", SETTINGS)
        assert json.loads((made.folder / packed.MANIFEST).read_text())["format"] == FORMAT
        for model in (load(str(source), SETTINGS), load(str(made.folder), SETTINGS)):
            assert apply_golden_policy(model, SETTINGS) == "agreed"
            for name, row in zip(IMAGES, expected, strict=True):
                answer = model(str(source / name))
                assert (answer.class_index, answer.label) == (positive, LABELS[positive])
                np.testing.assert_allclose(answer.probabilities, row, atol=1e-4)
                fields = answer.to_dict(2)
                assert (fields["threshold"], fields["label"]) == (threshold, LABELS[positive])
                assert TASK.rows(fields)[0].name == LABELS[positive]
            model.close()


@pytest.mark.slow
def test_a_pack_of_an_earlier_version_has_the_usual_threshold(tmp_path: Path, expected: np.ndarray) -> None:
    source = folder(tmp_path, weights(1), task="binary")
    made = pack(str(source), tmp_path / "packed", SETTINGS)
    manifest = json.loads((made.folder / packed.MANIFEST).read_text())
    assert "threshold" not in manifest
    del manifest["plan"]["evidence"]
    (made.folder / packed.MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    (made.folder / packed.SUMS).write_text(packed.lines(packed.sums(made.folder)))
    with load(str(made.folder), SETTINGS) as model:
        for name, row in zip(IMAGES, expected, strict=True):
            answer = model(str(source / name))
            assert (answer.class_index, answer.to_dict(2)["threshold"]) == (int(row[1] >= 0.5), 0.5)


# --- arithmetic and agreement


def test_index_0_is_negative_and_1_positive_and_both_sum_to_1() -> None:
    labels = TASK.labels(None, 1)
    answers = [TASK.answer(np.array([logit], np.float32), labels) for logit in (-200, -1, 1, 200)]
    assert [answer.label for answer in answers] == ["negative", "negative", "positive", "positive"]
    for answer in answers:
        assert answer.probabilities.sum() == pytest.approx(1)
        assert answer.probabilities.dtype == np.float32


def test_other_labels_are_two() -> None:
    assert TASK.labels(("off", "on"), 1) == ("off", "on")
    with pytest.raises(ValueError, match="there are 3 labels, and the task binary has two"):
        TASK.labels(("a", "b", "c"), 1)


def test_answers_agree_as_those_of_two_classes() -> None:
    reference = np.array([[0.9], [0.1]], np.float32)
    found = TASK.agree(reference + np.float32(0.03), reference, 0.1)
    assert found.differences == pytest.approx([0.03, 0.03], abs=1e-6)
    assert found.same is not None
    assert found.same.all()
    other = TASK.agree(1 - reference, reference, 0.1)
    assert other.kept is not None
    assert not other.kept.any()
    assert TASK.agree(np.array([[np.nan]], np.float32), reference[:1], 1).differences == np.inf


def test_a_golden_image_states_the_class() -> None:
    outputs = np.array([[2.0]], np.float32)
    golden = [Golden(Path("a.png"), 0)]
    (result,) = TASK.check_golden(outputs, golden, ("cat", "dog"), 0.02)
    assert result.reason == "class 1 (dog), and not 0 (cat)"
