"""Explain: `POST /explain`, the heat map of an image, as a picture or as numbers."""

import io

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.request_log import note
from pthserve.errors import MalformedRequest
from pthserve.http.limits import remaining
from pthserve.http.multipart import read_image
from pthserve.http.problems import JSON
from pthserve.http.routing import Route, plain
from pthserve.serving.explainer import Explained, Explainer
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)
"""Viridis at five places (Smith and van der Walt, 2015), which the colour-blind read like everybody."""
OPACITY, COLD = 0.85, 0.3
"""Of the heat over the image where it is warmest; where nothing spoke for the class, as a share of that."""


class Explain:
    """The route of the service that `predictor` answers for."""

    def __init__(self, predictor: Predictor) -> None:
        self._explainer = Explainer(predictor)

    async def explain(self, request: Request) -> Response:
        """Show what in an image spoke for a class: the most probable one, or the one that is asked for."""
        asked = _class(request)
        self._explainer.check(asked)  # before the body is worth reading
        image = await read_image(request)
        explained = await self._explainer.explain(image, asked, deadline=remaining(request.scope))
        note(request.scope, explained_by=explained.explanation.method, digest=explained.model.digest)
        accepted = request.headers.get("accept", "")
        if JSON in accepted and "image/" not in accepted:
            return Response(_numbers(explained), media_type=JSON)
        bgr = explained.model.spec.channel_order == "bgr"
        rgb = explained.image[..., ::-1] if bgr else explained.image
        picture = await run_in_threadpool(draw, rgb, explained.explanation.map)
        return Response(picture, media_type="image/png")


def draw(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """A PNG of `image`, uint8 (height, width, 1 or 3), under `heat`, float32 (rows, columns)."""
    height, width, channels = image.shape
    smooth = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    warmth = np.asarray(smooth)
    place = warmth * (len(COLOURS) - 1)
    colour = np.stack([np.interp(place, np.arange(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    rgb = np.repeat(image, 3, axis=2) if channels == 1 else image
    over = OPACITY * (COLD + (1 - COLD) * warmth[..., None])
    mixed = np.rint((1 - over) * rgb + over * colour).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(mixed).save(file, "PNG")
    return file.getvalue()


def routes(predictor: Predictor, settings: Settings) -> list[Route]:
    """The route, where the settings have it on."""
    return [plain("/explain", Explain(predictor).explain, ("POST",))] if settings.explain == "on" else []


def _numbers(explained: Explained) -> bytes:
    answer = {
        "class_index": explained.class_index,
        "label": explained.model.labels[explained.class_index],
        "method": explained.explanation.method,
        "map": explained.explanation.map,
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _class(request: Request) -> int | None:
    asked = request.query_params.get("class")
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise MalformedRequest("class is the number of a class, as /predict gives it: a whole number from 0")
    return int(asked)
