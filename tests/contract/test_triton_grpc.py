"""Triton's gRPC client, as it comes from its makers."""

import sys
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.contract import descriptors
from tests.contract.apart import Apart, running
from tests.contract.conftest import FILES, OUTPUTS, Served, close, inputs

from pthserve.grpc.procedures import CALLS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Apart]:
    with running(sys.executable, "triton_grpc.py", served.grpc) as client:
        yield client


def test_server_and_model_are_live_and_ready(client: Apart) -> None:
    assert client("states") == dict.fromkeys(("live", "ready", "model", "version"), True)


def test_server_and_model_say_what_they_are(client: Apart) -> None:
    told = client("metadata")
    assert told["server"]["name"] == "pthserve"
    assert told["model"]["versions"] == ["3"]
    assert {(put["datatype"], *put["shape"]) for put in told["model"]["inputs"]} == {
        ("BYTES", "-1"),
        ("UINT8", "-1", "-1", "-1", "3"),
        ("FP32", "-1", "3", "64", "64"),
    }
    assert {output["name"] for output in told["model"]["outputs"]} == OUTPUTS
    (model,) = told["index"]["models"]
    assert (model["name"], model["state"]) == ("pets", "READY")


@pytest.mark.parametrize("form", inputs())
def test_every_form_has_the_numbers_of_predict(client: Apart, expected: dict[str, Any], form: str) -> None:
    close(client("infer", *inputs()[form]), expected)


def test_id_and_version_come_back(client: Apart) -> None:
    assert client("identified", *inputs()["images"]) == ("r-1", "3")


def test_a_compressed_request_is_read(client: Apart, expected: dict[str, Any]) -> None:
    close(client("infer", *inputs()["tensors"], compression_algorithm="gzip"), expected)


def test_a_classification_names_the_best(client: Apart, expected: dict[str, Any]) -> None:
    rows = client("classify", *inputs()["images"], 2)
    best = [int(row[0].split(b":")[1]) for row in rows]
    assert best == expected["class_index"]
    assert {len(row) for row in rows} == {2}


def test_statistics_count_what_was_done(client: Apart) -> None:
    before = client("statistics")
    client("infer", *inputs()["images"])
    after = client("statistics")
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 3
    assert int(after["inference_stats"]["success"]["ns"]) > 0


def test_many_may_be_asked_at_once(client: Apart, expected: dict[str, Any]) -> None:
    for form in inputs():
        for answered in client("infer_at_once", *inputs()[form], 8):
            close(answered, expected)


@pytest.mark.parametrize("form", inputs())
def test_its_asyncio_client_has_the_numbers_of_predict(
    client: Apart, expected: dict[str, Any], form: str
) -> None:
    close(client("infer_with_asyncio", *inputs()[form]), expected)


def test_a_client_that_gives_up_leaves_nothing_behind(client: Apart, expected: dict[str, Any]) -> None:
    many = ("BYTES", np.array([FILES[0]] * 64, np.object_))
    status, _ = client("refused", "infer", "pets", many, client_timeout=0.001)
    assert status == "StatusCode.DEADLINE_EXCEEDED"
    close(client("infer", *inputs()["images"]), expected)


@pytest.mark.parametrize(
    ("model", "version", "told"),
    [("cats", "", "the service has the model 'pets'"), ("pets", "9", "this version was not found")],
)
def test_the_client_gets_to_read_what_was_wrong(client: Apart, model: str, version: str, told: str) -> None:
    status, message = client("refused", "infer", model, inputs()["images"], model_version=version)
    assert status == "StatusCode.NOT_FOUND"
    assert told in message


def test_a_model_can_be_loaded_again_and_not_unloaded(client: Apart, expected: dict[str, Any]) -> None:
    client("load")
    close(client("infer", *inputs()["images"]), expected)
    assert "cannot be unloaded" in client("refused", "unload_model", "pets")[1]


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_the_standard_health_check_is_served(served: Served, service: str) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_our_protocol_is_theirs_on_the_wire(client: Apart) -> None:
    """Every procedure and field of ours is one of theirs, with the same number and type."""
    theirs = descriptors.of(FileDescriptorProto.FromString(client("described")))
    ours = descriptors.ours()
    assert {place: theirs.get(place) for place in ours} == ours
    assert {method for service, method in ours if service == ".inference.GRPCInferenceService"} == set(CALLS)
