"""Triton's HTTP client, as it comes from its makers."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.conftest import FILES, OUTPUTS, Served, close, inputs
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult, aio
from tritonclient.utils import InferenceServerException

from ..shared import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(served.http.removeprefix("http://"), concurrency=8) as client:
        yield client


def put(form: str, *, binary: bool = True) -> list[InferInput]:
    datatype, elements = inputs()[form]
    tensor = InferInput("input", elements.shape, datatype)
    if form == "images" and not binary:
        elements = np.array([base64.b64encode(file) for file in FILES], np.object_)
    tensor.set_data_from_numpy(elements, binary_data=binary)
    return [tensor]


def arrays(result: InferResult) -> dict[str, Any]:
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def test_server_and_model_are_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.is_model_ready("pets", "3")
    assert not client.is_model_ready("cats")


def test_server_and_model_say_what_they_are(client: InferenceServerClient) -> None:
    assert client.get_server_metadata()["name"] == "pthserve"
    metadata = client.get_model_metadata("pets", "3")
    assert metadata["versions"] == ["3"]
    assert {(put["datatype"], *put["shape"]) for put in metadata["inputs"]} == {
        ("BYTES", -1),
        ("UINT8", -1, -1, -1, 3),
        ("FP32", -1, 3, 64, 64),
    }
    assert {output["name"] for output in metadata["outputs"]} == OUTPUTS
    (model,) = client.get_model_repository_index()
    assert (model["name"], model["state"]) == ("pets", "READY")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("form", inputs())
def test_every_form_has_the_numbers_of_predict(
    client: InferenceServerClient, expected: dict[str, Any], form: str, binary: bool
) -> None:
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    close(arrays(client.infer("pets", put(form, binary=binary), outputs=wanted)), expected)


def test_a_client_that_asks_for_nothing_gets_every_output(
    client: InferenceServerClient, expected: dict[str, Any]
) -> None:
    result = client.infer("pets", put("images"), model_version="3", request_id="r-1")
    close(arrays(result), expected)
    assert result.get_response()["id"] == "r-1"
    assert result.get_response()["model_version"] == "3"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_read(
    client: InferenceServerClient, expected: dict[str, Any], algorithm: str
) -> None:
    compressed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    close(arrays(client.infer("pets", put("tensors"), **compressed)), expected)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_a_classification_names_the_best(
    client: InferenceServerClient, expected: dict[str, Any], binary: bool
) -> None:
    wanted = [InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    rows = arrays(client.infer("pets", put("images"), outputs=wanted))["probabilities"]
    assert rows.shape == (3, 2)
    texts = [text.decode() if isinstance(text, bytes) else text for text in rows[:, 0]]
    for text, index, row in zip(texts, expected["class_index"], expected["probabilities"], strict=True):
        value, place, label = text.split(":")
        assert (int(place), label) == (index, ["ant", "bee", "cat", "dog", "snöwl"][index])
        assert float(value) == pytest.approx(row[index], abs=1e-5)


def test_statistics_count_what_was_done(client: InferenceServerClient) -> None:
    def counted() -> dict[str, Any]:
        (stats,) = client.get_inference_statistics("pets")["model_stats"]
        return stats

    before = counted()
    client.infer("pets", put("images"))
    after = counted()
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] > before["execution_count"]
    success = [stats["inference_stats"]["success"] for stats in (before, after)]
    assert success[1]["count"] - success[0]["count"] == 1
    assert success[1]["ns"] > success[0]["ns"]
    assert counted() == after


def test_many_may_be_asked_at_once(client: InferenceServerClient, expected: dict[str, Any]) -> None:
    forms = [form for form in inputs() for _ in range(8)]
    for pending in [client.async_infer("pets", put(form)) for form in forms]:
        close(arrays(pending.get_result()), expected)


async def test_its_asyncio_client_has_the_numbers_of_predict(
    served: Served, expected: dict[str, Any]
) -> None:
    async def answered() -> list[InferResult]:
        async with aio.InferenceServerClient(served.http.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(*(client.infer("pets", put(form)) for form in inputs()))

    for result in await answered():
        close(arrays(result), expected)


def test_a_client_that_gives_up_leaves_nothing_behind(served: Served, expected: dict[str, Any]) -> None:
    many = InferInput("input", (64,), "BYTES")
    many.set_data_from_numpy(np.array([FILES[0]] * 64, np.object_))
    hasty = InferenceServerClient(served.http.removeprefix("http://"), network_timeout=0.001)
    with hasty, pytest.raises(Exception, match="timed out"):
        hasty.infer("pets", [many])
    patient = InferenceServerClient(served.http.removeprefix("http://"))
    with patient:
        close(arrays(patient.infer("pets", put("images"))), expected)
    until(lambda: "pthserve_inflight_requests 0.0" in httpx.get(f"{served.http}/metrics").text)


@pytest.mark.parametrize(
    ("model", "version", "status", "told"),
    [
        ("cats", "", "404", "the service has the model 'pets'"),
        ("pets", "9", "404", "this version was not found"),
    ],
)
def test_the_client_gets_to_read_what_was_wrong(
    client: InferenceServerClient, model: str, version: str, status: str, told: str
) -> None:
    with pytest.raises(InferenceServerException, match=told) as caught:
        client.infer(model, put("images"), model_version=version)
    assert caught.value.status() == status


def test_a_model_cannot_be_unloaded(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="cannot be unloaded"):
        client.unload_model("pets")


def test_a_model_can_be_loaded_again(client: InferenceServerClient, expected: dict[str, Any]) -> None:
    client.load_model("pets")
    close(arrays(client.infer("pets", put("images"))), expected)
