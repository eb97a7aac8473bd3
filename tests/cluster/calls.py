"""Calls: clients over gRPC, as `load` has them over HTTP."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import grpc

from pthserve.protos import inference_pb2 as pb

from .load import Answer, Load

RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": "ModelInfer"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
"""The service config of docs/rollouts.md."""
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Calls(Load):
    """As Load, with calls of the model `model`.

    url: host and port. Each client has a connection of its own.
    """

    model: str = ""
    retried: bool = False
    """Whether calls that fail with UNAVAILABLE are sent again, by a service config as clients have it."""

    async def _run(self) -> None:
        requests = []
        for image in self.images:
            request = pb.ModelInferRequest(model_name=self.model)
            tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(image.read_bytes())
            requests.append(request.SerializeToString())
        await asyncio.gather(*(self._calling(requests, number) for number in range(self.clients)))

    async def _calling(self, requests: list[bytes], number: int) -> None:
        await asyncio.sleep(self.pause * number / self.clients)
        chance = random.Random(1000 + number)
        options: list[tuple[str, Any]] = [
            ("grpc.default_authority", self.host),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.retried:
            options.append(("grpc.service_config", json.dumps(RETRIES)))
        async with grpc.aio.insecure_channel(self.url, options=options) as channel:
            infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            while not self._stopped.is_set():
                began, digest, version, fault = time.monotonic(), "", "", ""
                call = infer(chance.choice(requests), timeout=self.timeout)
                try:
                    version = pb.ModelInferResponse.FromString(await call).model_version
                    digest = str(dict(await call.trailing_metadata()).get("x-model-digest", ""))
                    fault = "" if digest else "no digest"
                except grpc.aio.AioRpcError as error:
                    fault = f"{error.code().name} {error.details()}"[:200]
                status = 0 if fault else 200
                seconds = time.monotonic() - began
                self.answers.append(Answer(began, seconds, status, fault, digest, version, fresh=False))
                await asyncio.sleep(max(self.pause, 0.1 if fault else 0))
