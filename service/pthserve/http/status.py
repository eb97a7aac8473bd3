"""Status: the probes, `/info` and `/metrics`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.params import Depends
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pthserve.certainty import Origin
from pthserve.http.problems import JSON, described, problem
from pthserve.http.schema import new_router
from pthserve.loading.model import Model
from pthserve.metrics import REGISTRY
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tasks.choice import task_fields


class State(BaseModel):
    """The response of a successful probe."""

    status: str


class Golden(BaseModel):
    """The result of the model's golden images."""

    images: int
    result: str = Field(description="agreed, disagreed, or unchecked")


class Agreement(BaseModel):
    """How the answers of the engine compare with those of fp32 PyTorch; see docs/precision.md."""

    engine: str
    precision: str
    crops: int = Field(description="number of crops that were compared")
    photos: int = Field(description="number of photos that the crops are from")
    source: str = Field(description="what the photos are")
    mean: float = Field(description="mean, over the crops, of the largest difference of a probability")
    bound: float = Field(description="the mean with the margin that the tolerance is compared with")
    p95: float = Field(description="the difference that 95 % of the crops do not exceed")
    largest: float = Field(description="the largest difference")
    same: float | None = Field(description="share of crops with the same decision, such as the top class")
    clear: int | None = Field(description="number of crops on which the decision at fp32 is clear")
    kept: int | None = Field(description="number of those on which the decision is the same")
    reference_accuracy: float | None = Field(description="accuracy at fp32 on labelled images, 0 to 1")
    accuracy: float | None = Field(description="accuracy of the engine on them")
    digest: str = Field(description="SHA-256 of the photos")
    cpu: str = Field(description="instruction sets of the processor that was used")
    library: str = Field(description="name and version of the library that was used")


class Fact(BaseModel):
    """A property of the model that the service inferred; see docs/card.md."""

    subject: str
    value: str
    origin: Origin
    setting: str = Field(description="the line of model.yaml that states it")


class Int8(BaseModel):
    """Which part of the model is at int8; see docs/precision.md."""

    weight_bits: int
    layers: int = Field(description="number of layers that can be at int8")
    floating: dict[str, int] = Field(description="number of those that are not, by their kind")
    share: float = Field(description="share of the multiplications that are at int8")
    rest: str = Field(description="precision of the others where the processor has it, else fp32")
    photos: int = Field(description="number of photos that it was calibrated on")
    whole: str = Field(description="how the answers compared with all layers at int8; empty if they are")


class Planned(BaseModel):
    """What the service, or each pod, is planned for."""

    rate: float | None = Field(
        description="requests per second up to which `latency` is kept; null if not set"
    )
    latency: float | None = Field(description="99th percentile of latency in seconds; null if not set")


class Info(BaseModel):
    """The served model, and how it is run."""

    name: str
    version: str
    architecture: str
    parameters: int
    num_classes: int
    labels: list[str]
    task: dict[str, Any] = Field(description="the task: `name`, and its parameters")
    digest: str = Field(description="SHA-256 of the weights file")
    engine: str
    precision: str
    cpus: int = Field(description="number of CPUs that the service uses; see the setting `threads`")
    lanes: int = Field(description="number of forward passes that run at the same time")
    preprocess: dict[str, Any] = Field(
        description="how images are preprocessed; `assumed` if the model's files do not state it"
    )
    inferred: list[Fact] = Field(description="properties that the service inferred, each with its origin")
    plan: dict[str, Any] = Field(description="how the model is run on this machine, and what was measured")
    agreement: Agreement | None = Field(
        description="how the answers compare with those of fp32 PyTorch; null if that was not measured"
    )
    int8: Int8 | None = Field(description="which part of the model is at int8; null at another precision")
    golden: Golden | None
    last_reload: dict[str, Any] | None = Field(description="the result of the latest reload")
    rollout: dict[str, Any] | None = Field(
        description="agreement with another release on live images; null without the setting compare_with"
    )
    files_changed: bool = Field(description="whether the model's files have changed since they were loaded")
    explain: bool = Field(description="whether POST /explain is available")
    planned: Planned = Field(description="what the service is planned for; see docs/sizing.md")


def probes(predictor: Predictor) -> APIRouter:
    """Return the routes of the probes; `predictor` knows the state of the service."""
    routes = new_router(tags=["Probes"])

    @routes.get("/livez", summary="Is the process alive?", responses=_responses("restart it", _DEAD))
    async def livez() -> Response:
        """Whether the engine's threads run and make progress; otherwise the process should be restarted."""
        return _probe(predictor.live())

    @routes.get("/readyz", summary="Is it ready for traffic?", responses=_responses("send nothing yet"))
    async def readyz() -> Response:
        """Whether traffic should be sent: a model is loaded and warm. A full queue does not matter."""
        return _probe(predictor.unready)

    @routes.get("/healthz", summary="Is all well?", responses=_responses("not live, or not ready"))
    async def healthz() -> Response:
        """Whether the service is live and ready."""
        return _probe(predictor.live() or predictor.unready)

    return routes


def info(predictor: Predictor, settings: Settings, dependencies: Sequence[Depends] = ()) -> APIRouter:
    """Return the route that describes the model of `predictor`."""
    routes = new_router(tags=["Model"], dependencies=dependencies)

    @routes.get("/info", summary="What is served?", responses={503: _NOT_READY})
    async def info() -> Info:
        """The served model, how it is run on this machine, and what was measured to choose that."""
        model = predictor.model()
        return Info(
            name=model.name,
            version=model.version,
            architecture=model.architecture,
            parameters=model.parameters,
            num_classes=model.num_classes,
            labels=list(model.labels),
            task=task_fields(model.task),
            digest=model.digest,
            engine=model.forward.name,
            precision=model.forward.precision,
            cpus=predictor.cpus,
            lanes=model.forward.lanes,
            preprocess=model.spec.to_dict(),
            inferred=[Fact.model_validate(one.to_dict()) for one in model.inferred],
            plan=model.plan.to_dict(),
            agreement=_agreement(model),
            int8=Int8(**asdict(model.int8)) if model.int8 is not None else None,
            golden=_golden(predictor, model),
            last_reload=dict(predictor.last_reload) if predictor.last_reload is not None else None,
            rollout=dict(predictor.last_rollout) if predictor.last_rollout is not None else None,
            files_changed=predictor.files_changed,
            explain=settings.explain == "on" and model.task.explains,
            planned=Planned(rate=settings.planned_rate, latency=settings.planned_latency),
        )

    return routes


def metrics() -> APIRouter:
    """Return the route of the metrics."""
    routes = new_router(tags=["Probes"])

    @routes.api_route(
        "/metrics",
        methods=["GET"],
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
    )
    async def metrics(request: Request) -> Response:
        """The metrics of docs/metrics.md, as Prometheus text, or as OpenMetrics if `Accept` names it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        content = await run_in_threadpool(encode, REGISTRY)
        return Response(content, headers={"content-type": content_type})

    return routes


def _golden(predictor: Predictor, model: Model) -> Golden | None:
    return Golden(images=len(model.golden), result=predictor.golden) if model.golden else None


def _agreement(model: Model) -> Agreement | None:
    evidence = model.plan.agreement
    return None if evidence is None else Agreement.model_validate(evidence.to_dict())


def _probe(reason: str | None) -> Response:
    return Response(b'{"status":"ok"}', media_type=JSON) if reason is None else problem(503, reason)


def _responses(description: str, reason: str = "the model is loading") -> dict[int | str, dict[str, Any]]:
    """Return the responses of a probe; `reason` is the example of an error."""
    ok = {"model": State, "description": "it is", "content": {JSON: {"example": {"status": "ok"}}}}
    return {200: ok, 503: described(description, reason)}


_DEAD = "the engine's thread has died"
_NOT_READY = described("no model is ready yet", "the service is not ready: the model is loading")
