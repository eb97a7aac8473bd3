"""gRPC messages that are broken in any way: each is answered with a code that says whose fault it is."""

import random
from collections import Counter

import grpc
import numpy as np
import pytest

from pthserve.protos import inference_pb2 as pb

from ..running import Running
from .mutations import MODEL, SHAPE, image, mangled

pytestmark = pytest.mark.alone

SHARE = 10
"""Of so many broken requests one is sent this way."""
CALLS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelUnload"),
)
MISTAKES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


def message(dice: random.Random) -> bytes:
    """An inference, sound in itself, of images, pixels or tensors."""
    asked = pb.ModelInferRequest(model_name=MODEL)
    kind, count = dice.choice(("BYTES", "UINT8", "FP32")), dice.choice((1, 1, 2))
    tensor = asked.inputs.add(name="input", datatype=kind)
    if kind == "BYTES":
        tensor.shape.extend([count])
        blobs = [image(dice) for _ in range(count)]
        data = b"".join(len(blob).to_bytes(4, "little") + blob for blob in blobs)
    elif kind == "UINT8":
        tensor.shape.extend([count, 5, 7, 3])
        data = bytes(range(105)) * count
    else:
        tensor.shape.extend([count, *SHAPE])
        data = np.linspace(-2, 2, count * 3072, dtype=np.float32).tobytes()
    if kind != "FP32" or dice.random() < 0.5:
        asked.raw_input_contents.append(data)
    else:
        tensor.contents.fp32_contents.extend(np.frombuffer(data, np.float32).tolist())
    if dice.random() < 0.3:
        asked.parameters["timeout"].int64_param = dice.choice((0, -1, 2**62, 1_000_000))
    return asked.SerializeToString()


def test_each_is_answered_and_none_with_a_mistake(
    service: Running, seed: int, pytestconfig: pytest.Config
) -> None:
    codes: Counter[tuple[str, str]] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        for number in range(pytestconfig.getoption("fuzz") // SHARE):
            dice = random.Random(f"{seed} {number}")
            name = "ModelInfer" if dice.random() < 0.9 else dice.choice(CALLS)
            sent = mangled(dice, message(dice))
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
            code, details = grpc.StatusCode.OK, "fine"
            try:
                call(sent, timeout=40)
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
            assert code not in MISTAKES, f"{number} of seed {seed}, {name}: {details}"
            assert details
            codes[name, code.name] += 1
        # And one that is sound.
        asked = pb.ModelInferRequest(model_name=MODEL)
        asked.inputs.add(name="pixels", datatype="UINT8", shape=[1, 32, 32, 3])
        asked.raw_input_contents.append(bytes(3072))
        assert channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(asked.SerializeToString())
    for (name, said), count in sorted(codes.items()):
        print(name, said, count)
    assert service.metric("pthserve_inflight_requests") == 0
