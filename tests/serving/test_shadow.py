"""A new model answers live traffic beside the served one before it takes its place."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from pthserve.engines.base import Images, Logits
from pthserve.errors import ModelError
from pthserve.images.preprocess import normalise
from pthserve.metrics import REGISTRY
from pthserve.serving import shadow
from pthserve.serving.prediction import Input
from pthserve.serving.predictor import Predictor
from pthserve.serving.reload import Reload
from pthserve.settings import Settings

from ..shared import until_async
from .squares import BLUE, GREEN, RED, SPEC, Squares, pixels, png, squares

COLOURS = (RED, GREEN, BLUE)
OLD, NEW = "aa" * 32, "bb" * 32


class ColourBlind(Squares):
    """Takes green for red."""

    def __call__(self, batch: Images) -> Logits:
        return super().__call__(batch) * np.array([2, 0, 1], np.float32) + np.array([1, 0, 0], np.float32)


class Picky(Squares):
    """Fails on what is not red, once the warm-up is over."""

    def __call__(self, batch: Images) -> Logits:
        logits = super().__call__(batch)
        if len(self.batches) > 11 and logits.argmax() != 0:  # at most nine photos warm it up
            raise ValueError("not red")
        return logits


@asynccontextmanager
async def replaced(
    new: Squares, share: float = 1.0, floor: float = 0.0, *, asked: Callable[[int], Input] | None = None
) -> AsyncIterator[tuple[Predictor, "asyncio.Task[None]"]]:
    """A service that is bringing a model with the engine `new`, while clients ask for `asked(number)`."""
    settings = Settings(shadow=share, shadow_agreement=floor)
    predictor = Predictor(settings)
    models = [squares(new, digest=NEW), squares(digest=OLD)]
    reload = Reload(predictor, settings, models.pop)

    async def traffic() -> None:
        assert asked is not None
        for number in range(10**6):
            await predictor.predict(asked(number))

    try:
        await reload.first()
        swap = asyncio.create_task(reload.again())
        clients = [asyncio.create_task(traffic())] if asked else []
        yield predictor, swap
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    finally:
        reload.close()
        predictor.close()


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("pthserve_shadow_images_total", {"result": result}) or 0.0


def colour(number: int) -> tuple[int, int, int]:
    """A colour for each request: a third of them each, also of every second or every third request."""
    return COLOURS[int(3 * (number * (5**0.5 - 1) / 2 % 1))]


FORMS: dict[str, Callable[[int], Input]] = {
    "bytes": lambda number: png(colour(number)),
    "pixels": lambda number: pixels(colour(number)),
    "tensor": lambda number: normalise(pixels(colour(number), SPEC.crop)[None], SPEC)[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
async def test_a_model_that_agrees_is_swapped_in_and_the_rate_is_told(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "IMAGES", 30)

    before = counted("agreed")
    async with replaced(Squares(), floor=1.0, asked=FORMS[form]) as (predictor, swap):
        await swap
        assert predictor.model().digest == NEW
        assert (predictor.last_reload or {})["shadow"] == {"images": 30, "agreement": 1.0}
    assert counted("agreed") - before == 30


@pytest.mark.parametrize("engine", [ColourBlind, Picky])
async def test_a_model_that_agrees_too_little_or_fails_is_refused(
    engine: type[Squares], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "IMAGES", 30)

    before = counted("disagreed")
    async with replaced(engine(), floor=0.9, asked=FORMS["bytes"]) as (predictor, swap):
        with pytest.raises(ModelError, match=r"of 30 live images; at least 90.0% is required"):
            await swap
        assert predictor.model().digest == OLD
        assert not len(predictor.observers)
    assert 5 <= counted("disagreed") - before <= 25


async def test_without_a_floor_disagreement_is_only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "IMAGES", 30)

    async with replaced(ColourBlind(), asked=FORMS["bytes"]) as (predictor, swap):
        await swap
        assert predictor.model().digest == NEW
        told = (predictor.last_reload or {})["shadow"]
        assert isinstance(told, dict)
        assert 0.3 < told["agreement"] < 1


async def test_only_a_share_of_the_traffic_is_taken() -> None:
    predictor = Predictor(Settings())
    try:
        predictor.adopt(squares())
        prediction = await predictor.predict(png())
        sample = shadow.Shadow(predictor, squares(), 0.25)
        taken = 0
        image = png()
        for _ in range(4000):
            sample._offer([image], [prediction])
            taken += not sample._waiting.empty()
            while not sample._waiting.empty():
                sample._waiting.get_nowait()
        assert 800 < taken < 1200  # seven standard deviations
    finally:
        predictor.close()


async def test_without_traffic_the_model_is_swapped_in_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "SECONDS", 0.05)

    async with replaced(Squares(), floor=1.0) as (predictor, swap):
        await swap
        assert predictor.model().digest == NEW
        assert (predictor.last_reload or {})["shadow"] == {"images": 0, "agreement": None}


@pytest.mark.slow
async def test_a_slow_shadow_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pass takes a fifth of a second, and an answer milliseconds: they share nothing but the CPU."""
    monkeypatch.setattr(shadow, "IMAGES", 3)

    engine = Squares()
    async with replaced(engine, asked=FORMS["bytes"]) as (predictor, swap):
        engine.hook = lambda _: time.sleep(0.2 if predictor.observers else 0.0)
        await until_async(lambda: predictor.observers)
        loop = asyncio.get_running_loop()
        began, answered = loop.time(), 0
        while not swap.done():
            await predictor.predict(png())
            answered += 1
        assert answered > 3 * (loop.time() - began) / 0.2
