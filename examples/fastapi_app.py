"""A FastAPI application with a model in it.

`POST /sort` is a route of its own, with the model behind it. Below `/model` is the whole service, mounted:
its page, `/model/predict`, `/model/metrics`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, UploadFile
from pydantic import BaseModel

import pthserve
from pthserve.http.app import create_app
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings


class Sorted(BaseModel):
    """Into which box an image belongs."""

    box: str
    sure: bool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings = Settings(decode="fast")
    with pthserve.load(os.environ.get("MODEL", "weights/digits"), decode=settings.decode) as model:
        predictor = Predictor(settings)
        await predictor.warm_up(model)
        predictor.adopt(model)
        app.state.model = model
        app.mount("/model", create_app(predictor, settings))
        try:
            yield
        finally:
            predictor.close()


app = FastAPI(title="Sorter", lifespan=lifespan)


@app.post("/sort")
def sort(request: Request, image: Annotated[UploadFile, "an image file"]) -> Sorted:
    """A plain function: FastAPI runs it in a thread, and a model may be called from any."""
    model: pthserve.Model = request.app.state.model
    try:
        answer = model(image.file.read())
    except pthserve.RequestError as error:
        raise HTTPException(422, str(error)) from error
    return Sorted(box=answer.label, sure=bool(answer.probabilities.max() > 0.9))
