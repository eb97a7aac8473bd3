"""KServe's clients, as they come from their makers."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tests.contract import descriptors
from tests.contract.apart import Apart, environment, running
from tests.contract.conftest import FILES, Served, close, inputs

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Apart]:
    with running(environment("kserve.lock"), "kserve_clients.py", served.http) as client:
        yield client


def test_server_and_model_are_live_and_ready(client: Apart) -> None:
    assert client("states") == {"live": True, "ready": True, "model": True, "another": False}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("form", inputs())
def test_every_form_has_the_numbers_of_predict(
    client: Apart, expected: dict[str, Any], form: str, binary: bool
) -> None:
    datatype, elements = inputs()[form]
    if form == "images" and not binary:
        elements = np.array([base64.b64encode(file) for file in FILES], np.object_)
    close(client("infer", datatype, elements, binary=binary), expected)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("runtime.yaml", "V1alpha1ClusterServingRuntime"), ("inferenceservice.yaml", "V1beta1InferenceService")],
)
def test_the_client_knows_every_field_of_the_manifests(client: Apart, file: str, kind: str) -> None:
    document = yaml.safe_load((ROOT / "k8s" / "kserve" / file).read_text())
    assert client("unread", kind, document) == []
    document["spec"]["containerz"] = []
    assert client("unread", kind, document) == [f"{kind}.spec.containerz"]


def test_the_id_comes_back(client: Apart) -> None:
    assert client("identified", *inputs()["images"]) == ("r-1", "pets")


def test_many_may_be_asked_at_once(client: Apart, expected: dict[str, Any]) -> None:
    for form in inputs():
        for answered in client("infer_at_once", *inputs()[form], 8):
            close(answered, expected)


def test_the_client_gets_to_read_what_was_wrong(client: Apart) -> None:
    status, message = client("refused", *inputs()["images"], "cats")
    assert status == 404
    assert "the service has the model 'pets'" in message


@pytest.mark.parametrize(
    ("form", "raw"), [(form, True) for form in inputs()] + [("pixels", False), ("tensors", False)]
)  # it takes nothing but text for typed BYTES
def test_its_grpc_client_has_the_numbers_of_predict(
    client: Apart, served: Served, expected: dict[str, Any], form: str, raw: bool
) -> None:
    close(client("infer_over_grpc", served.grpc, *inputs()[form], binary=raw), expected)


def test_our_protocol_is_theirs_on_the_wire(client: Apart) -> None:
    """What both know is the same; but for the repository, where ours is as Triton has it."""
    theirs = descriptors.of(FileDescriptorProto.FromString(client("described")))
    ours = descriptors.ours()
    shared = {place for place in ours.keys() & theirs.keys() if "Repository" not in "".join(place)}
    assert {place: theirs[place] for place in shared} == {place: ours[place] for place in shared}
    assert len(shared) > 50
