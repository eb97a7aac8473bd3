"""Calls: clients over gRPC, as `load` has them over HTTP."""

import asyncio
import time
from dataclasses import dataclass

import grpc

from pthserve.protos import inference_pb2 as pb

from .load import Answer, Load

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Calls(Load):
    """As Load, with calls of the model `model`.

    url: host and port. Each client has a connection of its own.
    """

    model: str = ""

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
        options = [("grpc.default_authority", self.host), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.url, options=options) as channel:
            infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            while not self._stopped.is_set():
                began, digest, fault = time.monotonic(), "", ""
                call = infer(requests[len(self.answers) % len(requests)], timeout=self.timeout)
                try:
                    await call
                    digest = str(dict(await call.trailing_metadata()).get("x-model-digest", ""))
                    fault = "" if digest else "no digest"
                except grpc.aio.AioRpcError as error:
                    fault = f"{error.code().name} {error.details()}"[:200]
                status = 0 if fault else 200
                self.answers.append(
                    Answer(began, time.monotonic() - began, status, fault, digest, fresh=False)
                )
                await asyncio.sleep(max(self.pause, 0.1 if fault else 0))
