"""Routes: the plain ones. What each answers is in docs/api.md and, for machines, at /openapi.json."""

import orjson
from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.request_log import note
from pthserve.errors import MalformedRequest
from pthserve.http.limits import remaining
from pthserve.http.multipart import read_image
from pthserve.http.problems import JSON, problem
from pthserve.http.routing import Route, plain
from pthserve.loading.model import Model
from pthserve.metrics import REGISTRY
from pthserve.serving.prediction import Prediction
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tasks.choice import task_fields

TOP = 5
"""How many of the best classes are named where the request does not say."""


class Routes:
    """The plain routes of the service that `predictor` answers for."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self._predictor = predictor
        self._settings = settings

    async def predict(self, request: Request) -> Response:
        """Say what is in an image: its class, every class's probability, and the best few by label."""
        top = _top(request)
        self._predictor.check(1, remaining(request.scope))  # before the body is worth reading
        image = await read_image(request)
        prediction = await self._predictor.predict(image, deadline=remaining(request.scope))
        noted(request, prediction)
        return _json(_answer(prediction, top))

    async def livez(self, _: Request) -> Response:
        """Whether the process should be left alone: its engine's thread is there and moves."""
        return _probe(self._predictor.live())

    async def readyz(self, _: Request) -> Response:
        """Whether traffic should come here: a model is loaded and warm. A full queue is no reason."""
        return _probe(self._predictor.unready)

    async def healthz(self, _: Request) -> Response:
        """Whether all is well: live and ready."""
        return _probe(self._predictor.live() or self._predictor.unready)

    async def info(self, _: Request) -> Response:
        """What is served, how it is run on this machine, and what was tried before that was chosen."""
        model = self._predictor.model()
        return _json(
            {
                "name": model.name,
                "version": model.version,
                "architecture": model.architecture,
                "parameters": model.parameters,
                "num_classes": model.num_classes,
                "labels": model.labels,
                "task": task_fields(model.task),
                "digest": model.digest,
                "engine": model.forward.name,
                "precision": model.forward.precision,
                "preprocess": model.spec.to_dict(),
                "inferred": [one.to_dict() for one in model.inferred],
                "plan": model.plan.to_dict(),
                "golden": self._golden(model),
                "last_reload": self._predictor.last_reload,
                "files_changed": self._predictor.files_changed,
                "explain": self._settings.explain == "on" and model.task.explains,
            }
        )

    def _golden(self, model: Model) -> dict[str, object] | None:
        if not model.golden:
            return None
        return {"images": len(model.golden), "result": self._predictor.golden}


async def metrics(request: Request) -> Response:
    """The metrics of docs/metrics.md, as Prometheus text, or as OpenMetrics where `Accept` asks for it."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(await run_in_threadpool(encode, REGISTRY), headers={"content-type": content_type})


def noted(request: Request, prediction: Prediction) -> None:
    """Put what `prediction` took into the request's line of the log."""
    note(request.scope, **_timing(prediction), digest=prediction.model.digest)


def routes(predictor: Predictor, settings: Settings) -> list[Route]:
    """The plain routes; /metrics among them where it has no port of its own."""
    calls = Routes(predictor, settings)
    return [
        plain("/predict", calls.predict, ("POST",)),
        plain("/livez", calls.livez, public=True),
        plain("/readyz", calls.readyz, public=True),
        plain("/healthz", calls.healthz, public=True),
        plain("/info", calls.info),
        *([plain("/metrics", metrics, public=True)] if settings.metrics_port is None else ()),
    ]


def _answer(prediction: Prediction, top: int) -> dict[str, object]:
    model = prediction.model
    return {
        **prediction.answer.to_dict(top),
        "model": {"name": model.name, "version": model.version, "digest": model.digest},
        "timing": _timing(prediction),
    }


def _timing(prediction: Prediction) -> dict[str, float]:
    """Seconds, to the microsecond, and the images in the same forward pass."""
    return {
        "decode": round(prediction.decode, 6),
        "queue": round(prediction.queue, 6),
        "infer": round(prediction.infer, 6),
        "batch": prediction.batch,
    }


def _top(request: Request) -> int:
    asked = request.query_params.get("top", str(TOP))
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked)):
        raise MalformedRequest("top is how many of the best classes to name: a whole number from 1")
    return int(asked)


def _probe(trouble: str | None) -> Response:
    return _json({"status": "ok"}) if trouble is None else problem(503, trouble)


def _json(value: object) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)
