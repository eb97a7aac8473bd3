"""Regression: values with names and units, the whole way from a file to an answer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pthserve import Regression
from pthserve.files.golden import Golden
from pthserve.files.stated_task import NamedOutput
from pthserve.loading.load import load
from pthserve.tasks.regression import RegressionTask

from ..http_service import Service
from .asking import SETTINGS, packed_and_served, predicted, same_over_both
from .nets import IMAGES, folder, reference, weights

OUTPUTS = [{"name": "age", "unit": "years", "range": [-5, 5]}, {"name": "height"}]
TASK = RegressionTask((NamedOutput("age", "years"), NamedOutput("height", range=(0.0, 10.0))))


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """PyTorch's values of the images."""
    return reference(weights(2)).numpy()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, expected: np.ndarray) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("regression")
    golden = [
        {"image": f"{number}.png", "values": {"age": float(row[0]) + 0.05}}
        for number, row in enumerate(expected)
    ]
    source = folder(path / "source", weights(2), task="regression", outputs=OUTPUTS, golden=golden)
    with packed_and_served(source, path / "pack") as started:
        yield started


def test_predict_gives_values_by_name_and_their_units(service: Service, expected: np.ndarray) -> None:
    for answer, row in zip(predicted(service), expected, strict=True):
        assert answer["task"] == "regression"
        assert answer["values"] == pytest.approx({"age": row[0], "height": row[1]}, abs=1e-4)
        assert answer["units"] == {"age": "years"}


def test_the_open_inference_protocol_has_the_values_in_the_order_of_the_outputs(
    service: Service, expected: np.ndarray
) -> None:
    found = same_over_both(service)
    assert list(found) == ["values"]
    np.testing.assert_allclose(found["values"], expected, atol=1e-4)


def test_there_are_no_classes_to_rank_or_to_explain(service: Service) -> None:
    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}],
        "outputs": [{"name": "values", "parameters": {"classification": 1}}],
    }
    ranked = service.client.post("/v2/models/net/infer", json=request)
    explained = service.client.post("/explain", files={"image": IMAGES["0.png"]})
    assert ranked.status_code == explained.status_code == 400
    assert ranked.json()["error"] == (
        "`classification` cannot be requested for values: this model has no classes"
    )
    assert explained.json()["error"] == (
        "a heat map explains a class, but a model for regression has no classes"
    )
    assert service.client.get("/info").json()["explain"] is False


def test_info_has_the_outputs_and_the_golden_images_result(service: Service) -> None:
    info = service.client.get("/info").json()
    assert info["task"] == {
        "name": "regression",
        "outputs": [{"name": "age", "unit": "years", "range": [-5.0, 5.0]}, {"name": "height"}],
    }
    assert info["golden"] == {"images": 3, "result": "agreed"}


def test_values_are_counted_by_output(service: Service, expected: np.ndarray) -> None:
    names = [f'pthserve_prediction_value_{kind}{{output="height"}}' for kind in ("count", "sum")]
    before = [service.metric(name) for name in names]
    predicted(service)
    count, total = (service.metric(name) - old for name, old in zip(names, before, strict=True))
    assert count == 3
    assert total == pytest.approx(expected[:, 1].sum(), abs=1e-3)


@pytest.mark.slow
def test_values_without_names_are_numbered(tmp_path: Path) -> None:
    model = load(str(folder(tmp_path / "two", weights(2), task="regression")), SETTINGS)
    answer = model(str(tmp_path / "two" / "0.png"))
    assert isinstance(answer, Regression)
    assert answer.to_dict(5)["values"].keys() == {"value_0", "value_1"}
    model.close()
    model = load(str(folder(tmp_path / "one", weights(1), task="regression")), SETTINGS)
    answer = model(str(tmp_path / "one" / "0.png"))
    assert isinstance(answer, Regression)
    assert answer["value"] == pytest.approx(float(reference(weights(1))[0, 0]), abs=1e-4)
    model.close()


# --- agreement


def rows(*values: tuple[float, float]) -> np.ndarray:
    return np.array(values, np.float32)


def test_values_agree_on_the_scale_of_what_the_reference_gives_or_of_the_range() -> None:
    reference = rows((40, 4), (-20, 1))
    found = TASK.agree(reference + rows((1, 0.1)), reference, 0)
    assert found.differences == pytest.approx([0.025, 0.025], abs=1e-5)
    assert TASK.agree(reference + rows((0, 0.3)), reference, 0).differences == pytest.approx(0.03, abs=1e-5)
    assert found.same is None


def test_what_is_no_number_never_agrees() -> None:
    assert TASK.agree(rows((np.nan, 1)), rows((1, 1)), 1).differences == np.inf


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((40.5, 5.0), ""),
        ((None, 5.1), ""),
        ((30.0, None), "age is 40, and not 30: 0.333 of its scale off, more than 0.02"),
        ((40.0,), "1 values are stated, and there are 2 outputs"),
    ],
)
def test_a_golden_image_states_the_values_that_are_known(
    values: tuple[float | None, ...], reason: str
) -> None:
    golden = [Golden(Path("a.png"), values=values)]
    (result,) = TASK.check_golden(rows((40, 5)), golden, ("age", "height"), 0.02)
    assert result.reason == reason


def test_golden_images_of_no_numbers_disagree() -> None:
    golden = [Golden(Path("a.png"), values=(1.0, None))]
    (result,) = TASK.check_golden(rows((np.nan, 5)), golden, ("age", "height"), 0.02)
    assert result.reason == "its values are not numbers"
    assert result.difference == np.inf


def test_a_new_model_gives_the_same_where_no_value_is_far_off() -> None:
    one, other, third = (
        TASK.answer(np.array(row, np.float32), ("age", "height")) for row in ((40, 5), (42, 5.5), (40, 7))
    )
    assert TASK.same(one, other)
    assert not TASK.same(one, third)
