"""Where API keys are asked for, each client can send one, and gets to read why it was not let in."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.contract.apart import environment, running
from tests.http_service import Service, serving
from tests.serving.squares import png, squares
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.slow

IMAGES = ("BYTES", np.array([png()], np.object_))
KEYS = [("authorization", "Bearer a-key"), ("x-api-key", "a-key")]
WRONG = [("authorization", "Bearer another"), ("x-unknown", "a-key")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("a-key\n")
    with serving(squares(name="pets"), grpc_port=0, api_keys=Path(keys)) as started:
        yield started


def test_tritons_http_client(service: Service) -> None:
    tensor = InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(IMAGES[1])
    with InferenceServerClient(service.url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        for key in KEYS:
            assert client.infer("pets", [tensor], headers=dict([key])).as_numpy("label").tolist() == [b"red"]
        for wrong in WRONG:
            with pytest.raises(InferenceServerException, match="key") as caught:
                client.infer("pets", [tensor], headers=dict([wrong]))
            assert caught.value.status() == "401"


def test_tritons_grpc_client(service: Service) -> None:
    with running(sys.executable, "triton_grpc.py", f"127.0.0.1:{service.server.ports['grpc']}") as client:
        for key in KEYS:
            assert client("infer", *IMAGES, headers=dict([key]))["label"].tolist() == [b"red"]
        for wrong in WRONG:
            status, message = client("refused", "infer", "pets", IMAGES, headers=dict([wrong]))
            assert status == "StatusCode.UNAUTHENTICATED"
            assert "key" in message


def test_kserves_rest_client(service: Service) -> None:
    with running(environment("kserve.lock"), "kserve_clients.py", service.url) as client:
        for key in KEYS:
            assert client("infer", *IMAGES, binary=True, headers=dict([key]))["label"].tolist() == ["red"]
        for wrong in WRONG:
            status, message = client("refused", *IMAGES, "pets", headers=dict([wrong]))
            assert status == 401
            assert "key" in message
