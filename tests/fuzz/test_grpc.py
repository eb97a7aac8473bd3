"""gRPC messages that are broken in any way: each is answered with a code that says whose fault it is.

And calls that never end, of any kind: others are answered beside them, and nothing of them stays behind.
"""

import gzip
import random
import zlib
from collections import Counter

import grpc
import numpy as np
import pytest

from pthserve.protos import inference_pb2 as pb

from ..http2 import Calls
from ..http2 import message as framed
from ..running import Running
from .mutations import MODEL, SHAPE, image, mangled
from .test_requests import settled

pytestmark = pytest.mark.slow

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


def compressed(dice: random.Random, plain: bytes) -> bytes:
    """`plain`, now and then compressed, well or badly, or something else that becomes very large."""
    kind = dice.random()
    if kind < 0.8:
        return plain
    if kind > 0.98:
        plain = dice.choice((bytes(30 * 2**20), b"\x1a\x80\x80\x80\x02" + b"x" * 2**22, b"\x0a" * 2**22))
    squeezed = dice.choice((gzip.compress, zlib.compress))(plain, 1)
    return mangled(dice, squeezed) if dice.random() < 0.3 else squeezed


def test_each_is_answered_and_none_with_a_mistake(
    service: Running, seed: int, pytestconfig: pytest.Config
) -> None:
    codes: Counter[tuple[str, str]] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        for number in range(pytestconfig.getoption("fuzz") // SHARE):
            dice = random.Random(f"{seed} {number}")
            name = "ModelInfer" if dice.random() < 0.9 else dice.choice(CALLS)
            sent = compressed(dice, mangled(dice, message(dice)))
            options = {"compression": dice.choice((*grpc.Compression,))} if dice.random() < 0.2 else {}
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                f"/inference.GRPCInferenceService/{name}"
            )
            code, details = grpc.StatusCode.OK, "fine"
            try:
                call(sent, timeout=40, **options)
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
            assert code not in MISTAKES, f"{number} of seed {seed}, {name}: {details}"
            assert details
            codes[name, code.name] += 1
        # And one that is sound.
        asked = pb.ModelInferRequest(model_name=MODEL)
        asked.inputs.add(name="pixels", datatype="UINT8", shape=[1, 32, 32, 3])
        asked.raw_input_contents.append(bytes(3072))
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer"
        )
        assert infer(asked.SerializeToString())
    for (name, said), count in sorted(codes.items()):
        print(name, said, count)
    assert service.metric("pthserve_inflight_requests") == 0


PATHS = (
    *(f"/inference.GRPCInferenceService/{name}" for name in (*CALLS, "ModelInfer", "ModelInfer", "Nothing")),
    *("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/", "/x/y"),
)
ROUNDS = 8
CONNECTIONS = 4
MIB = 100
"""More memory than endless calls may take: eight messages of 8 MiB that arrive, and what a process needs."""


def endless(dice: random.Random, calls: Calls) -> None:
    """Begin a call that is not finished, or not as it should be."""
    body = compressed(dice, mangled(dice, message(dice)))
    size = dice.choice((len(body), len(body) + 1, 2**23, 2**23 + 1, 2**31, 2**32 - 1, 0))
    if dice.random() < 0.1:
        body += bytes(2**21)
    sent = framed(body, compressed=dice.random() < 0.3, size=size)
    if dice.random() < 0.1:
        sent = mangled(dice, sent)
    headers = {"grpc-encoding": dice.choice(("gzip", "deflate", "identity", "br", ""))}
    stream = calls.call(dice.choice(PATHS), sent, end=dice.random() < 0.2, headers=headers)
    if dice.random() < 0.1:
        calls.reset(stream)


def test_calls_that_never_end_keep_nobody_out_and_leave_nothing_behind(service: Running, seed: int) -> None:
    before = settled(service)
    highest = before
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        for number in range(ROUNDS):
            dice = random.Random(f"{seed} endless {number}")
            connections = [
                Calls(service.grpc_port, window=dice.choice((0, 0, 10, 2**16))) for _ in range(CONNECTIONS)
            ]
            for _ in range(40):
                for calls in connections:
                    endless(dice, calls)
                    calls.pump(0)
            for _ in range(100):
                for calls in connections:
                    calls.pump(0.002)
            highest = max(highest, service.memory())
            metadata: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerMetadata"
            )
            assert metadata(b"", timeout=40), f"round {number} of seed {seed}"
            assert service.client.get("/livez").status_code == 200
            for calls in connections:
                calls.close()
    after = settled(service)
    print(f"memory {before:.1f} MiB before, at most {highest:.1f}, {after:.1f} after")
    assert highest < before + MIB
    assert after < 1.05 * before
    assert service.metric("pthserve_inflight_requests") == 0
