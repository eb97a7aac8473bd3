"""Calls: the procedures of inference.GRPCInferenceService, by name."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from pthserve.protocol.service import Service
from pthserve.protos import inference_pb2 as pb
from pthserve.rpc import messages

Call = Callable[[Service, Any, float | None], Awaitable[Message]]
"""From the request, and the seconds that its client grants, to the response; raises PthserveError."""


async def _server_live(service: Service, _: pb.ServerLiveRequest, __: float | None) -> Message:
    return pb.ServerLiveResponse(live=service.live() is None)


async def _server_ready(service: Service, _: pb.ServerReadyRequest, __: float | None) -> Message:
    return pb.ServerReadyResponse(ready=service.unready() is None)


async def _model_ready(service: Service, asked: pb.ModelReadyRequest, _: float | None) -> Message:
    return pb.ModelReadyResponse(ready=service.model_unready(asked.name, asked.version) is None)


async def _server_metadata(service: Service, _: pb.ServerMetadataRequest, __: float | None) -> Message:
    return ParseDict(service.server_metadata(), pb.ServerMetadataResponse())


async def _model_metadata(service: Service, asked: pb.ModelMetadataRequest, _: float | None) -> Message:
    return ParseDict(service.model_metadata(asked.name, asked.version), pb.ModelMetadataResponse())


async def _model_infer(service: Service, asked: pb.ModelInferRequest, seconds: float | None) -> Message:
    return messages.response(await service.infer(messages.request(asked), seconds))


async def _model_statistics(service: Service, asked: pb.ModelStatisticsRequest, _: float | None) -> Message:
    return ParseDict(service.statistics(asked.name, asked.version), pb.ModelStatisticsResponse())


async def _repository_index(service: Service, asked: pb.RepositoryIndexRequest, _: float | None) -> Message:
    return ParseDict({"models": service.index(ready=asked.ready)}, pb.RepositoryIndexResponse())


async def _load(service: Service, asked: pb.RepositoryModelLoadRequest, _: float | None) -> Message:
    await service.load(asked.model_name, messages.parameters(asked.parameters))
    return pb.RepositoryModelLoadResponse()


async def _unload(service: Service, asked: pb.RepositoryModelUnloadRequest, _: float | None) -> Message:
    service.unload(asked.model_name)
    return pb.RepositoryModelUnloadResponse()


CALLS: dict[str, Call] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _model_infer,
    "ModelStatistics": _model_statistics,
    "RepositoryIndex": _repository_index,
    "RepositoryModelLoad": _load,
    "RepositoryModelUnload": _unload,
}
