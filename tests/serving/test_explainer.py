"""One request's heat map, made aside of the traffic."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pthserve.engines.base import Explanation, Images
from pthserve.engines.heat_map import AT_ONCE, GRID
from pthserve.errors import (
    BrokenImage,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    MalformedRequest,
    NotReady,
    Overloaded,
    PthserveError,
    TooLarge,
    UnsupportedImage,
)
from pthserve.loading.model import Model
from pthserve.metrics import REGISTRY
from pthserve.serving.explainer import PERMITS, Explainer
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

from ..shared import until_async
from .squares import BLUE, GREEN, RED, SPEC, Gate, Squares, pixels, png, squares

PATIENCE = 30.0
"""Seconds that are left, where nothing hangs."""


@asynccontextmanager
async def explaining(
    model: Model | None = None, **settings: Any
) -> AsyncIterator[tuple[Predictor, Explainer]]:
    predictor = Predictor(Settings(**settings))
    try:
        predictor.adopt(model or squares())
        explainer = Explainer(predictor)
        yield predictor, explainer
        await until_async(lambda: explainer._making == 0)
    finally:
        predictor.close()


class Insight(Squares):
    """Squares, with a look at its inside that may wait for its gate."""

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.gate = gate

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation:
        if self.gate is not None:
            self.gate(image)
        return Explanation("insight", np.full((2, 2), class_index + 1, np.float32))


def rejected() -> float:
    return REGISTRY.get_sample_value("pthserve_rejected_total", {"reason": "explain"}) or 0.0


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 10)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE])
async def test_without_a_class_the_most_probable_is_explained(colour: tuple[int, int, int]) -> None:
    async with explaining() as (predictor, explainer):
        explained = await explainer.explain(png(colour), None, deadline=PATIENCE)
        assert explained.class_index == [RED, GREEN, BLUE].index(colour)
        assert explained.model is predictor.current
        np.testing.assert_array_equal(explained.image, pixels(colour, SPEC.crop))


@pytest.mark.parametrize("class_index", [0, 1, 2])
async def test_any_class_can_be_asked_for(class_index: int) -> None:
    async with explaining() as (_, explainer):
        explained = await explainer.explain(png(GREEN), class_index, deadline=PATIENCE)
        assert explained.class_index == class_index
        assert explained.explanation.method == "occlusion"
        assert explained.explanation.map.shape == (GRID, GRID)
        # Hiding some of a green square speaks against green and for nothing else.
        assert explained.explanation.map.any() == (class_index == 1)


async def test_an_engine_s_own_map_needs_no_pass_of_its_own_for_a_class_that_is_asked_for() -> None:
    engine = Insight()
    async with explaining(squares(engine)) as (_, explainer):
        explained = await explainer.explain(png(), 2, deadline=PATIENCE)
        assert explained.explanation.method == "insight"
        assert engine.batches == []
        await explainer.explain(png(), None, deadline=PATIENCE)
        assert engine.batches == [1]


async def test_an_occlusion_map_takes_a_few_images_at_a_time() -> None:
    engine = Squares()
    async with explaining(squares(engine, max_batch=64)) as (_, explainer):
        await explainer.explain(png(), 0, deadline=PATIENCE)
        assert sum(engine.batches) == GRID**2 + 1
        assert max(engine.batches) <= AT_ONCE


async def test_predictions_are_answered_between_the_passes_of_a_map() -> None:
    passes = threading.Semaphore(0)
    engine = Squares(hook=lambda _: None if passes.acquire(timeout=PATIENCE) else pytest.fail("stuck"))
    async with explaining(squares(engine)) as (predictor, explainer):
        explained = asyncio.create_task(explainer.explain(png(), 0, deadline=PATIENCE))
        await until_async(lambda: engine.batches)
        predicted = asyncio.create_task(predictor.predict(png(GREEN)))
        await until_async(lambda: predictor.batcher.depth)
        passes.release(2)
        assert (await predicted).answer.class_index == 1
        assert not explained.done()
        passes.release(99)
        await explained


@pytest.mark.parametrize("class_index", [3, 10**8])
async def test_a_class_that_there_is_not_is_said_before_anything_is_done(class_index: int) -> None:
    async with explaining() as (_, explainer):
        for attempt in (
            lambda: explainer.explain(b"", class_index, deadline=PATIENCE),
            lambda: asyncio.to_thread(explainer.check, class_index),
        ):
            with pytest.raises(MalformedRequest, match="0 to 2"):
                await attempt()


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"no image", UnsupportedImage), (png()[:60], BrokenImage), (png(size=(100, 101)), TooLarge)],
)
async def test_what_is_wrong_with_an_image_is_said_and_its_permit_comes_back(
    data: bytes, error: type[PthserveError]
) -> None:
    async with explaining(max_pixels=10_000) as (_, explainer):
        for _ in range(PERMITS + 1):
            with pytest.raises(error):
                await explainer.explain(data, None, deadline=PATIENCE)
            await until_async(lambda: explainer._making == 0)


async def test_more_maps_than_there_are_permits_are_turned_away_at_once() -> None:
    gate = Gate()
    async with explaining(squares(Insight(gate))) as (predictor, explainer):
        held = [asyncio.create_task(explainer.explain(png(), 0, deadline=PATIENCE)) for _ in range(PERMITS)]
        await entered(gate)
        before = rejected()
        with pytest.raises(Overloaded, match="heat maps"):
            explainer.check(None)
        with pytest.raises(Overloaded, match="heat maps"):
            await explainer.explain(png(), None, deadline=PATIENCE)
        assert rejected() - before == 2
        assert (await predictor.predict(png())).answer.class_index == 0  # others notice nothing
        gate.opened.set()
        await asyncio.gather(*held)
        await until_async(lambda: explainer._making == 0)
        await explainer.explain(png(), None, deadline=PATIENCE)


async def test_the_deadline_passes_while_the_engine_hangs() -> None:
    gate = Gate()
    engine = Squares(hook=gate)
    async with explaining(squares(engine)) as (_, explainer):
        with pytest.raises(DeadlineExceeded, match="heat map"):
            await explainer.explain(png(), 0, deadline=0.1)
        gate.opened.set()


async def test_a_map_that_nobody_waits_for_any_more_is_given_up() -> None:
    gate = Gate()
    engine = Squares(hook=gate)
    async with explaining(squares(engine)) as (_, explainer):
        leaving = asyncio.create_task(explainer.explain(png(), 0, deadline=PATIENCE))
        await entered(gate)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert explainer._making == 1, "the thread is still at it"
        gate.opened.set()
        await until_async(lambda: explainer._making == 0)
        assert sum(engine.batches) <= 2 * AT_ONCE


async def test_a_map_is_of_the_model_that_its_request_found() -> None:
    gate = Gate()
    old = squares(Insight(gate))
    async with explaining(old) as (predictor, explainer):
        held = asyncio.create_task(explainer.explain(png(), None, deadline=PATIENCE))
        await entered(gate)
        predictor.adopt(squares(version="2"))
        gate.opened.set()
        assert (await held).model is old
        assert (await explainer.explain(png(), None, deadline=PATIENCE)).model.version == "2"


async def test_a_forward_pass_that_fails_fails_the_map() -> None:
    def fail(_: Images) -> None:
        raise MemoryError

    async with explaining(squares(Squares(hook=fail))) as (_, explainer):
        with pytest.raises(EngineFailed, match="MemoryError"):
            await explainer.explain(png(), None, deadline=PATIENCE)
    gc.collect()  # an error that nobody took out of its future would be told of now


async def test_before_the_first_model_and_after_the_end_nothing_is_explained() -> None:
    predictor = Predictor(Settings())
    explainer = Explainer(predictor)
    with pytest.raises(NotReady):
        await explainer.explain(png(), None, deadline=PATIENCE)
    predictor.adopt(squares())
    predictor.close()
    with pytest.raises(Draining):
        explainer.check(None)


def test_a_map_ends_with_the_event_loop_however_long_its_deadline_is() -> None:
    gate = Gate()
    predictor = Predictor(Settings())
    predictor.adopt(squares(Squares(hook=gate)))
    explainer = Explainer(predictor)

    async def leave() -> None:
        task = asyncio.create_task(explainer.explain(png(), 0, deadline=1e6))
        await entered(gate)
        task.cancel()

    asyncio.run(leave())
    makers = [thread for thread in threading.enumerate() if thread.name == "explain"]
    for maker in makers:
        maker.join(PATIENCE)
    assert not any(maker.is_alive() for maker in makers)
    gate.opened.set()
    predictor.close()
