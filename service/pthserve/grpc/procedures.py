"""The procedures of inference.GRPCInferenceService, by name."""

import asyncio

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from pthserve.grpc import messages
from pthserve.grpc.interceptor import Call, Terms
from pthserve.inference_protocol.service import Service
from pthserve.protos import inference_pb2 as pb


async def _server_live(service: Service, _: pb.ServerLiveRequest, __: Terms) -> Message:
    return pb.ServerLiveResponse(live=service.live() is None)


async def _server_ready(service: Service, _: pb.ServerReadyRequest, __: Terms) -> Message:
    return pb.ServerReadyResponse(ready=service.unready() is None)


async def _model_ready(service: Service, request: pb.ModelReadyRequest, _: Terms) -> Message:
    return pb.ModelReadyResponse(ready=service.model_unready(request.name, request.version) is None)


async def _server_metadata(service: Service, _: pb.ServerMetadataRequest, __: Terms) -> Message:
    return ParseDict(service.server_metadata(), pb.ServerMetadataResponse())


async def _model_metadata(service: Service, request: pb.ModelMetadataRequest, _: Terms) -> Message:
    return ParseDict(service.model_metadata(request.name, request.version), pb.ModelMetadataResponse())


async def _model_infer(service: Service, request: pb.ModelInferRequest, terms: Terms) -> Message:
    response = await service.infer(messages.request(request), terms.remaining())
    terms.notes.update(response.notes)
    if response.is_large:
        return await asyncio.to_thread(messages.response, response)
    return messages.response(response)


async def _model_statistics(service: Service, request: pb.ModelStatisticsRequest, _: Terms) -> Message:
    return ParseDict(service.statistics(request.name, request.version), pb.ModelStatisticsResponse())


async def _repository_index(service: Service, request: pb.RepositoryIndexRequest, _: Terms) -> Message:
    return ParseDict({"models": service.index(ready=request.ready)}, pb.RepositoryIndexResponse())


async def _load(service: Service, request: pb.RepositoryModelLoadRequest, _: Terms) -> Message:
    await service.load(request.model_name, messages.parameters(request.parameters))
    return pb.RepositoryModelLoadResponse()


async def _unload(service: Service, request: pb.RepositoryModelUnloadRequest, _: Terms) -> Message:
    service.unload(request.model_name)
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
