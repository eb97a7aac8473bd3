"""Explain: `POST /explain`, the heat map of an image, as a PNG or as numbers."""

import io
from collections.abc import Sequence

import numpy as np
import orjson
from fastapi import APIRouter
from fastapi.params import Depends
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.bodies import Bodies
from pthserve.access.request_log import note
from pthserve.errors import MalformedRequest
from pthserve.http.images import BODY, read_image
from pthserve.http.limits import TIMEOUT_HEADER, remaining
from pthserve.http.predict import ERRORS
from pthserve.http.problems import JSON, Problem
from pthserve.http.schema import new_router
from pthserve.serving.explainer import Explained, Explainer
from pthserve.serving.predictor import Predictor

COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)
"""Five colours (RGB) of Viridis (Smith and van der Walt, 2015), which colour-blind people can read, too."""
OPACITY, COLD = 0.85, 0.3
"""Opacity of the heat map where it is 1; and where it is 0, as a share of that."""


class HeatMap(BaseModel):
    """How much each part of an image speaks for a class."""

    class_index: int
    label: str
    method: str = Field(description="Grad-CAM, class activation map, or occlusion")
    map: list[list[float]] = Field(
        description="rows of numbers, spread evenly over the crop: 0 speaks least for the class, 1 most"
    )


def router(predictor: Predictor, bodies: Bodies, dependencies: Sequence[Depends] = ()) -> APIRouter:
    """Return the route that explains the answers of `predictor`.

    Args:
        bodies: Parses large JSON outside the event loop.
        dependencies: Dependencies of the route, such as the check of the API key.
    """
    routes = new_router(tags=["Predict"], dependencies=dependencies)
    explainer = Explainer(predictor)

    @routes.post(
        "/explain",
        summary="Show which parts of an image speak for a class",
        responses={
            200: {
                "description": "the crop with the heat map over it; the map alone if `Accept` is JSON",
                "content": {"image/png": {}},
                "model": HeatMap,
            },
            **{code: {**error, "content": {}} for code, error in ERRORS.items()},
            400: {"description": "there is no image, no such class, or nothing to parse", "model": Problem},
            503: {"description": "the limit of heat maps or of images is reached", "model": Problem},
        },
        openapi_extra={"parameters": [_CLASS, TIMEOUT_HEADER], "requestBody": BODY},
    )
    async def explain(request: Request) -> Response:
        """Show which parts of an image speak for a class: the most probable one, or the one in `class`."""
        class_index = _class(request)
        explainer.check(class_index)  # before the body is read
        image = await read_image(request, bodies)
        explained = await explainer.explain(image, class_index, deadline=remaining(request.scope))
        note(request.scope, explained_by=explained.explanation.method, digest=explained.model.digest)
        accepted = request.headers.get("accept", "")
        if JSON in accepted and "image/" not in accepted:
            return Response(_numbers(explained), media_type=JSON)
        bgr = explained.model.spec.channel_order == "bgr"
        rgb = explained.image[..., ::-1] if bgr else explained.image
        picture = await run_in_threadpool(draw, rgb, explained.explanation.map)
        return Response(picture, media_type="image/png")

    return routes


def draw(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """Return a PNG of an image under a heat map.

    Args:
        image: uint8 (height, width, 1 or 3), RGB or grey.
        heat: float32 (rows, columns), 0 to 1.
    """
    height, width, channels = image.shape
    smooth = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    warmth = np.asarray(smooth)
    position = warmth * (len(COLOURS) - 1)
    colour = np.stack(
        [np.interp(position, np.arange(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1
    )
    rgb = np.repeat(image, 3, axis=2) if channels == 1 else image
    opacity = OPACITY * (COLD + (1 - COLD) * warmth[..., None])
    mixed = np.rint((1 - opacity) * rgb + opacity * colour).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(mixed).save(file, "PNG")
    return file.getvalue()


def _numbers(explained: Explained) -> bytes:
    answer = {
        "class_index": explained.class_index,
        "label": explained.model.labels[explained.class_index],
        "method": explained.explanation.method,
        "map": explained.explanation.map,
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _class(request: Request) -> int | None:
    value = request.query_params.get("class")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise MalformedRequest(
            "`class` must be a class index as in the response of /predict: an integer, 0 or greater"
        )
    return int(value)


_CLASS = {
    "name": "class",
    "in": "query",
    "description": "the class to explain; the most probable one by default",
    "schema": {"type": "integer", "minimum": 0},
}
