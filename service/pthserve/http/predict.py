"""Predict: `POST /predict`, the model's answers for one image or several."""

import asyncio
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.params import Depends
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, create_model
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.bodies import Bodies
from pthserve.access.request_log import note
from pthserve.errors import MalformedRequest, SameProcess
from pthserve.http.images import BODY, Sent, read_images
from pthserve.http.limits import TIMEOUT_HEADER, remaining
from pthserve.http.problems import JSON, described
from pthserve.http.schema import add_models, new_router, reference
from pthserve.images.cost import total
from pthserve.images.spec import Spec
from pthserve.serving.prediction import Prediction
from pthserve.serving.predictor import Predictor
from pthserve.serving.rollout import HEADER as COMPARISON
from pthserve.tasks.base import Answer as TaskAnswer
from pthserve.tasks.base import Deferred, Drawn, Encoded, Selects, Task, Work

TOP = 5
"""Number of most probable classes in an answer by default."""
MANY = 2**14
"""Number of scores from which a response is written in a thread: it takes milliseconds."""
PNG = "image/png"
DRAWN = 2048
"""Maximum width and height, in pixels, of an image with the answer drawn over it."""
Selection = Callable[[Any], TaskAnswer]
_STAGES = ("decode", "queue", "infer", "batch")


class ServedModel(BaseModel):
    """The model that answered."""

    name: str
    version: str
    digest: str = Field(description="SHA-256 of the weights file")


class Timing(BaseModel):
    """Duration of each stage in seconds."""

    decode: float
    queue: float
    infer: float
    batch: int = Field(description="images in the same forward pass")


class Answer(BaseModel):
    """The answer for one image: the fields of the model's task, and these."""

    model: ServedModel
    timing: Timing


class Answers(BaseModel):
    """The answers for several images."""

    predictions: list[Answer] = Field(description="one per image, in the order of the request")


def router(predictor: Predictor, bodies: Bodies, dependencies: Sequence[Depends] = ()) -> APIRouter:
    """Return the route for predictions.

    Args:
        predictor: Answers the images.
        bodies: Parses large JSON outside the event loop.
        dependencies: Dependencies of the route, such as the check of the API key.
    """
    routes = new_router(tags=["Predict"], dependencies=dependencies)

    @routes.post(
        "/predict",
        summary="Ask the model about an image",
        responses={
            200: {"model": Answer | Answers, "description": "the model's answer; a list for several images"},
            **ERRORS,
        },
        openapi_extra={"parameters": [_TOP, TIMEOUT_HEADER], "requestBody": BODY},
    )
    async def predict(request: Request) -> Response:
        """Send one image or several; for several, or a list of one, the answers are in `predictions`."""
        top, draws = _top(request), _wants_picture(request)
        predictor.check(1, remaining(request.scope))  # before the body is read
        selection = _selection(request, predictor.model().task)
        sent = await read_images(request, bodies)
        predictions = await predictor.predict_many(
            sent.files, deadline=remaining(request.scope), live=not _is_comparison(request, predictor)
        )
        note_predictions(request, predictions)
        if draws:
            return await _picture(request, predictor, sent, predictions[0], selection)
        written = partial(_json_list, predictions) if sent.is_list else partial(_json, predictions[0])
        if costs := [one.answer.writing for one in predictions if isinstance(one.answer, Deferred)]:
            work = Work(total(costs), partial(written, top, selection))
            (text,) = await predictor.computed([work], remaining(request.scope))
            return Response(text, media_type=JSON)
        scores = len(predictions) * predictions[0].model.num_classes
        if selection is None and (scores < MANY or not sent.is_list):
            return Response(written(top), media_type=JSON)
        return Response(await asyncio.to_thread(written, top, selection), media_type=JSON)

    return routes


def _is_comparison(request: Request, predictor: Predictor) -> bool:
    """Return whether another release sends this request only to compare answers; see `serving.rollout`."""
    sender = request.headers.get(COMPARISON)
    if sender is None:
        return False
    if sender == predictor.instance:
        raise SameProcess("this comparison request was sent by the process that received it")
    note(request.scope, comparison=True)
    return True


async def _picture(
    request: Request, predictor: Predictor, sent: Sent, prediction: Prediction, selection: Selection | None
) -> Response:
    """Return the answer as PNG: a class map, or the image with the answer drawn over it.

    An image is scaled down to at most DRAWN pixels a side; a class map has the size of the image as sent.
    """
    answer = prediction.answer if selection is None else selection(prediction.answer)
    if len(sent.files) != 1 or not isinstance(answer, Drawn):
        raise MalformedRequest(
            "a PNG response needs exactly one image and a model that detects objects; accept application/json"
        )
    if isinstance(answer, Encoded) and not answer.overlaid:
        (png,) = await predictor.computed([Work(answer.writing, answer.png)], remaining(request.scope))
        return Response(png, media_type=PNG)
    width, height = answer.size
    scale = min(1.0, DRAWN / max(width, height))
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    spec = Spec(resize=shape, crop=shape, exif=prediction.model.spec.exif)
    left = remaining(request.scope)
    pixels = await predictor.decoded(sent.files[0], spec, left)
    return Response(await asyncio.to_thread(_drawn, answer, pixels), media_type=PNG)


def _drawn(answer: Drawn, pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    answer.draw(Image.fromarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _wants_picture(request: Request) -> bool:
    """Return whether `Accept` names PNG and does not name JSON."""
    accepted = {one.partition(";")[0].strip() for one in request.headers.get("accept", "").lower().split(",")}
    return PNG in accepted and JSON not in accepted


def _selection(request: Request, task: Task) -> Selection | None:
    """Return the selection that the request's parameters make from an answer, if the task has parameters."""
    if not isinstance(task, Selects):
        return None
    try:
        return task.selection(request.query_params)
    except ValueError as error:
        raise MalformedRequest(str(error)) from None


def note_predictions(request: Request, predictions: Sequence[Prediction]) -> None:
    """Add the duration of each stage to the request's log line: the longest of its images."""
    timings = [_timing(prediction) for prediction in predictions]
    several = {"images": len(predictions)} if len(predictions) > 1 else {}
    note(
        request.scope,
        **several,
        **{stage: max(timing[stage] for timing in timings) for stage in _STAGES},
        digest=predictions[0].model.digest,
    )


def describe_answers(document: dict[str, Any], answer_models: Sequence[type[BaseModel]]) -> None:
    """Describe in the OpenAPI `document` that an answer has the fields of one of `answer_models`."""
    described = [
        create_model(
            "Answer" if len(answer_models) == 1 else model.__name__,
            __base__=model,
            __doc__=model.__doc__,
            model=ServedModel,
            timing=Timing,
        )
        for model in answer_models
    ]
    add_models(document, described, "serialization")
    if len(described) > 1:
        one_of_them = {"title": "Answer", "anyOf": [reference(model) for model in described]}
        document["components"]["schemas"]["Answer"] = one_of_them
    content = document["paths"]["/predict"]["post"]["responses"]["200"]["content"][JSON]
    content["example"] = {**_examples(answer_models[0]), **_EXAMPLE}


def describe_parameters(document: dict[str, Any], task: Task) -> None:
    """Describe in the OpenAPI `document` the query parameters that this task accepts."""
    if not isinstance(task, Selects):
        return
    predict = document["paths"]["/predict"]["post"]
    predict["parameters"] = [
        *predict["parameters"],
        *(
            {"name": one.name, "in": "query", "description": one.description, "schema": dict(one.schema)}
            for one in task.query
        ),
    ]
    predict["responses"]["200"]["content"][PNG] = {"schema": {"type": "string", "format": "binary"}}


def _examples(answer_model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the example in the schema of `answer_model`."""
    (example,) = answer_model.model_json_schema().get("examples", [{}])
    return dict(example)


def _json(prediction: Prediction, top: int, selection: Selection | None = None) -> bytes:
    model = prediction.model
    answer = prediction.answer if selection is None else selection(prediction.answer)
    return orjson.dumps(
        {
            **answer.to_dict(top),
            "model": {"name": model.name, "version": model.version, "digest": model.digest},
            "timing": _timing(prediction),
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _json_list(predictions: Sequence[Prediction], top: int, selection: Selection | None = None) -> bytes:
    return b'{"predictions":[%b]}' % b",".join(
        _json(prediction, top, selection) for prediction in predictions
    )


def _timing(prediction: Prediction) -> dict[str, float]:
    """Return seconds per stage, to the microsecond, and the number of images in the same forward pass."""
    return {
        "decode": round(prediction.decode, 6),
        "queue": round(prediction.queue, 6),
        "infer": round(prediction.infer, 6),
        "batch": prediction.batch,
    }


def _top(request: Request) -> int:
    value = request.query_params.get("top", str(TOP))
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value)):
        raise MalformedRequest("`top` must be the number of classes to return: an integer, 1 or greater")
    return int(value)


_EXAMPLE = {
    "model": {"name": "squares", "version": "1", "digest": "00" * 32},
    "timing": {"decode": 0.0015, "queue": 0.0001, "infer": 0.0081, "batch": 1},
}
_TOP = {
    "name": "top",
    "in": "query",
    "description": "how many of the most probable classes to list",
    "schema": {"type": "integer", "minimum": 1, "default": TOP},
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: described(
        "there is no image, or the request cannot be parsed",
        "the request contains no image: send it as the multipart field `image`, as base64 in the JSON field "
        "`image`, or as the body with its content type, such as image/png",
    ),
    408: described("the body did not arrive in time", "the request body did not arrive before the deadline"),
    413: described(
        "too many bytes, pixels, parts or images",
        "the request body is larger than the limit of 20971520 bytes",
    ),
    415: described(
        "not an image of an allowed format",
        "the data is not a supported image; send one of JPEG, PNG, WebP, BMP, GIF, TIFF",
    ),
    422: described("an image that is broken", "the PNG image is broken: image file is truncated"),
    503: described(
        "overloaded, draining or not ready; `Retry-After` says when to try again",
        "the service is not ready: the model is loading",
    ),
    504: described("the deadline passed", "the deadline passed before the answer was ready"),
}
"""The error responses of every route that receives an image."""
