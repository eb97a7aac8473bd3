"""Multilabel: a sigmoid for each label, the whole way from a file to an answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pthserve import MultiLabel
from pthserve.files.golden import Golden
from pthserve.loading.load import load
from pthserve.tasks.multilabel import MultiLabelTask, sigmoid

from ..http_service import Service
from .asking import SETTINGS, packed_and_served, predicted, same_over_both, tensors
from .nets import IMAGES, Functional, folder, reference, weights, with_sigmoid

LABELS = ["beach", "dog", "people", "snow"]
TASK = MultiLabelTask(0.5)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """PyTorch's probabilities of the images."""
    return reference(weights(4)).sigmoid().numpy()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, expected: np.ndarray) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("multilabel")
    golden = [
        {
            "image": f"{number}.png",
            "labels": [label for label, probability in zip(LABELS, row, strict=True) if probability >= 0.3],
            "probabilities": {"dog": round(float(row[1]), 4)},
        }
        for number, row in enumerate(expected)
    ]
    card: dict[str, Any] = {"task": "multilabel", "threshold": 0.3, "labels": LABELS, "golden": golden}
    source = folder(path / "source", weights(4), **card)
    with packed_and_served(source, path / "pack") as started:
        yield started


@pytest.mark.slow
def test_predict_gives_all_labels_from_the_threshold_on(service: Service, expected: np.ndarray) -> None:
    assert len({len(np.flatnonzero(row >= 0.3)) for row in expected}) > 1, "the images should differ"
    for answer, row in zip(predicted(service, top=2), expected, strict=True):
        assert answer["task"] == "multilabel"
        assert answer["threshold"] == 0.3
        np.testing.assert_allclose(answer["probabilities"], row, atol=1e-5)
        order = np.argsort(-row)
        assert [one["label"] for one in answer["labels"]] == [LABELS[i] for i in order if row[i] >= 0.3]
        assert [one["class_index"] for one in answer["top"]] == order[:2].tolist()


def test_the_open_inference_protocol_has_probabilities_logits_and_which_apply(
    service: Service, expected: np.ndarray
) -> None:
    found = same_over_both(service)
    assert list(found) == ["probabilities", "logits", "applies"]
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    np.testing.assert_allclose(found["logits"], reference(weights(4)).numpy(), atol=1e-4)
    assert found["applies"].tolist() == (expected >= 0.3).astype(int).tolist()


def test_the_classification_extension_names_the_most_probable_labels(
    service: Service, expected: np.ndarray
) -> None:
    ranked = {"name": "probabilities", "parameters": {"classification": 1}}
    best = [text.partition(":")[2] for text in tensors(service, ranked)["probabilities"]]
    assert best == [f"{row.argmax()}:{LABELS[row.argmax()]}" for row in expected]


def test_which_labels_apply_cannot_be_ranked(service: Service) -> None:
    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}],
        "outputs": [{"name": "applies", "parameters": {"classification": 1}}],
    }
    reply = service.client.post("/v2/models/net/infer", json=request)
    assert reply.status_code == 400
    assert (
        reply.json()["error"]
        == "`classification` can be requested for probabilities or logits, not for applies"
    )


def test_info_says_which_task_it_is_and_how_the_golden_images_did(service: Service) -> None:
    info = service.client.get("/info").json()
    assert info["task"] == {"name": "multilabel", "threshold": 0.3}
    assert info["golden"] == {"images": 3, "result": "agreed"}
    assert info["labels"] == LABELS


def test_each_label_that_applies_is_counted(service: Service, expected: np.ndarray) -> None:
    name = 'pthserve_predictions_total{label="people"}'
    before = service.metric(name), service.metric("pthserve_prediction_confidence_count")
    predicted(service)
    assert service.metric(name) - before[0] == (expected[:, 2] >= 0.3).sum()
    assert service.metric("pthserve_prediction_confidence_count") - before[1] == 3


def test_explain_shows_what_spoke_for_a_label(service: Service) -> None:
    headers = {"Accept": "application/json"}
    reply = service.client.post("/explain?class=3", files={"image": IMAGES["0.png"]}, headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.json()["label"] == "snow"


# --- a model that computes the sigmoid itself


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "architecture"), [(with_sigmoid, "with_sigmoid"), (Functional, "Functional")]
)
def test_a_model_that_ends_in_a_sigmoid_is_multilabel_and_its_numbers_are_kept(
    build: type[torch.nn.Module], architecture: str, tmp_path: Path
) -> None:
    module = build()
    module.load_state_dict(dict(zip(module.state_dict(), weights(4).state_dict().values(), strict=True)))
    model = load(str(folder(tmp_path, module, architecture, labels=LABELS)), SETTINGS)
    answers = model.batch([str(tmp_path / f"{number}.png") for number in range(3)])
    assert all(isinstance(answer, MultiLabel) for answer in answers)
    found = np.stack([answer.probabilities for answer in answers])
    np.testing.assert_allclose(found, reference(module).numpy(), atol=1e-5)
    (inferred,) = [one for one in model.inferred if one.subject == "task"]
    assert inferred.value == "multilabel: its last operation is a Sigmoid"
    assert not inferred.uncertain
    model.close()


# --- arithmetic and agreement


def test_the_sigmoid_is_torch_s_for_any_number() -> None:
    logits = np.array([-3e38, -90, -5.5, 0, 1e-3, 20, 3e38], np.float32)
    np.testing.assert_allclose(sigmoid(logits), torch.from_numpy(logits).sigmoid().numpy(), atol=1e-7)
    assert sigmoid(logits).dtype == np.float32


def test_an_answer_names_the_labels_that_apply() -> None:
    answer = TASK.answer(np.array([0, -1, 2, -9], np.float32), tuple(LABELS))
    assert answer.names == ["people", "beach"]
    assert answer.indices == [2, 0]
    assert TASK.answer(np.array([-1, -1, -2, -9], np.float32), tuple(LABELS)).names == []


def test_the_difference_of_an_image_is_the_largest_of_a_probability() -> None:
    reference = np.array([[0.9, 0.1, 0.4, 0.6]], np.float32)
    found = TASK.agree(reference + np.float32(0.03), reference, 0.1)
    assert found.differences == pytest.approx([0.03], abs=1e-6)


def test_a_label_on_the_other_side_of_the_threshold_disagrees_unless_it_is_close() -> None:
    clear, close = np.array([[0.6]], np.float32), np.array([[0.51]], np.float32)
    other = np.array([[0.49]], np.float32)
    for expected, kept in ((clear, False), (close, True)):
        found = TASK.agree(other, expected, 0.1)
        assert found.same is not None
        assert not found.same.any()
        assert found.kept is not None
        assert found.kept.all() == kept


def test_what_is_no_number_never_agrees() -> None:
    found = TASK.agree(np.array([[np.nan, 0.5]], np.float32), np.array([[0.5, 0.5]], np.float32), 1)
    assert found.differences == np.inf
    assert found.kept is not None
    assert not found.kept.any()


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        ({"labels": (0, 2)}, ""),
        ({"labels": (0, 1, 2)}, "label 1 (dog) does not apply, and should: its probability is 0.119"),
        ({"labels": (0,)}, "label 2 (people) applies, and should not: its probability is 0.953"),
        ({"labels": (0, 2, 3)}, ""),  # within the tolerance of the threshold
        ({"labels": (0, 2, 7)}, "there is no label 7 among 4"),
        ({"labels": (0, 2), "probabilities": (None, 0.12, None, None)}, ""),
        ({"probabilities": (None, 0.3, None, None)}, "dog has probability 0.119, and not 0.3 ± 0.02"),
        ({"probabilities": (0.3,)}, "1 probabilities are stated, and there are 4 labels"),
    ],
)
def test_a_golden_image_states_labels_and_probabilities(golden: dict[str, Any], reason: str) -> None:
    outputs = np.array([[2, -2, 3, -0.01]], np.float32)
    (result,) = TASK.check_golden(outputs, [Golden(Path("a.png"), **golden)], tuple(LABELS), 0.02)
    assert result.reason == reason


def test_a_new_model_gives_the_same_where_the_same_labels_apply() -> None:
    one, other, third = (TASK.answer(np.array([x, 1], np.float32), ("a", "b")) for x in (-1, -3, 1))
    assert TASK.same(one, other)
    assert not TASK.same(one, third)
