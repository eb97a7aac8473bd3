"""Feedback: `POST /feedback`, the true class of an image that was answered before."""

from collections.abc import Sequence
from dataclasses import asdict

import orjson
from fastapi import APIRouter
from fastapi.params import Depends
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import Response

from pthserve.access.request_log import note
from pthserve.errors import NotFound
from pthserve.http.bodies import parsed
from pthserve.http.limits import remaining
from pthserve.http.peers import HEADER as FORWARDED
from pthserve.http.peers import Peers
from pthserve.http.problems import JSON, described
from pthserve.http.schema import new_router
from pthserve.serving.feedback import Feedback
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings


class TrueClass(BaseModel):
    """The true class of an image."""

    id: str = Field(max_length=128, description="the header X-Request-Id of the answer")
    label: StrictStr | StrictInt = Field(description="the true class: its label or its index")
    image: StrictInt = Field(0, description="the number of the image in the request, counted from 0")


class Reported(BaseModel):
    """Whether the answer was correct."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "4fd0a1", "image": 0, "label": "red", "answer": "green", "correct": False,
                "counted": True, "digest": "00" * 32,
            }
        }
    )  # fmt: skip

    id: str
    image: int
    label: str = Field(description="the true class, as it was reported")
    answer: str = Field(description="the class that the model gave")
    correct: bool
    counted: bool = Field(description="false if the true class of this image was reported before")
    digest: str = Field(description="SHA-256 of the weights of the model that answered")


def router(predictor: Predictor, settings: Settings, dependencies: Sequence[Depends] = ()) -> APIRouter:
    """Return the route that counts correct answers of `predictor`.

    Args:
        dependencies: Dependencies of the route, such as the check of the API key.
    """
    routes = new_router(tags=["Predict"], dependencies=dependencies)
    answers = Feedback(predictor, settings.feedback)
    peers = Peers(settings.feedback_peers) if settings.feedback_peers is not None else None

    @routes.post(
        "/feedback",
        summary="Report the true class of an image",
        responses={
            200: {"model": Reported, "description": "whether the answer was correct"},
            400: described("there is no such image or class, or the JSON cannot be parsed"),
            404: described("no answer with this id is remembered"),
            413: described("the body is too large"),
            503: described("not all pods could be asked who gave the answer; try again"),
        },
        openapi_extra={
            "requestBody": {"required": True, "content": {JSON: {"schema": TrueClass.model_json_schema()}}}
        },
    )
    async def feedback(request: Request) -> Response:
        """Send the id of an answer, its header `X-Request-Id`, and the class that the image really has."""
        body = await request.body()
        sent = parsed(TrueClass, body)
        try:
            reported = answers.report(sent.id, sent.label, sent.image)
        except NotFound:
            if peers is None or FORWARDED in request.headers:
                raise
            reply = await peers.ask(request, body, remaining(request.scope))
            if reply is None:
                raise
            return reply
        note(request.scope, digest=reported.digest)
        return Response(orjson.dumps(asdict(reported)), media_type=JSON)

    return routes
