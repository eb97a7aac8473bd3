"""One request from bytes to answer."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pthserve.engines.base import Images, Logits
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
from pthserve.images.cost import FREE
from pthserve.images.preprocess import Pending, normalise
from pthserve.loading.model import Model
from pthserve.metrics import REGISTRY
from pthserve.serving.decoders import Job
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings

from ..shared import until_async
from .squares import BLUE, GREEN, RED, SPEC, Gate, Squares, answer, pixels, png, squares

COLOURS = (RED, GREEN, BLUE)


@asynccontextmanager
async def predicting(model: Model | None = None, **settings: Any) -> AsyncIterator[Predictor]:
    predictor = Predictor(Settings(**settings))
    try:
        predictor.adopt(model or squares())
        yield predictor
        assert predictor.admission.inflight == 0, "a permit leaked"
    finally:
        predictor.close()


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 10)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    "sent",
    [png, pixels, lambda colour: normalise(pixels(colour, SPEC.crop)[None], SPEC)[0]],
    ids=["bytes", "pixels", "tensor"],
)
async def test_an_image_is_answered_whichever_way_it_is_sent(sent: Any, colour: tuple[int, int, int]) -> None:
    async with predicting() as predictor:
        prediction = await predictor.predict(sent(colour))
        np.testing.assert_allclose(prediction.answer.probabilities, answer(colour), atol=1e-6)
        assert prediction.answer.class_index == COLOURS.index(colour)
        assert prediction.answer.logits.dtype == prediction.answer.probabilities.dtype == np.float32
        assert prediction.model is predictor.current
        assert min(prediction.decode, prediction.queue, prediction.infer) >= 0
        assert prediction.batch == 1


async def test_the_best_classes_are_named_in_order_and_of_equals_the_first() -> None:
    async with predicting() as predictor:
        prediction = await predictor.predict(pixels((0, 255, 255)))
        assert prediction.answer.top(2) == [1, 2]
        assert prediction.answer.top(99) == [1, 2, 0]
        many = replace(
            prediction,
            answer=replace(
                prediction.answer, probabilities=np.array([0.5, 0.25, 0.5, 0, 0.25] * 8, np.float32)
            ),
        )
        ranked = sorted(range(40), key=lambda index: -many.answer.probabilities[index])
        assert all(many.answer.top(count) == ranked[:count] for count in range(1, 42))


async def test_many_images_of_one_request_are_answered_in_their_order() -> None:
    engine = Squares()
    async with predicting(squares(engine)) as predictor:
        images = [png(COLOURS[number % 3]) for number in range(20)]
        predictions = await predictor.predict_many(images)
        assert [one.answer.class_index for one in predictions] == [number % 3 for number in range(20)]


async def test_one_bad_image_fails_its_request_and_costs_the_others_nothing_more() -> None:
    engine = Squares()
    gate = Gate()
    engine.hook = gate
    async with predicting(squares(engine)) as predictor:
        held = asyncio.create_task(predictor.predict(png()))
        await entered(gate)
        with pytest.raises(BrokenImage):
            await predictor.predict_many([png(), png()[:50], png()])
        gate.opened.set()
        await held
        await predictor.predict(png())
        assert engine.batches == [1, 1]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"no image at all", UnsupportedImage),
        (png()[:60], BrokenImage),
        (png(size=(100, 101)), TooLarge),
        (pixels(RED, (100, 101)), TooLarge),
        (np.zeros((40, 40), np.uint8), MalformedRequest),
        (np.zeros((40, 40, 4), np.uint8), MalformedRequest),
        (np.zeros((0, 40, 3), np.uint8), MalformedRequest),
        (np.zeros((40, 40, 3), np.int64), MalformedRequest),
        (np.zeros((3, 31, 32), np.float32), MalformedRequest),
        (np.full((3, 32, 32), np.nan, np.float32), MalformedRequest),
        (np.full((3, 32, 32), np.inf, np.float32), MalformedRequest),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
async def test_what_is_wrong_with_an_image_is_said(sent: Any, error: type[PthserveError]) -> None:
    async with predicting(max_pixels=10_000) as predictor:
        with pytest.raises(error):
            await predictor.predict(sent)


async def test_a_model_that_answers_no_numbers_has_failed() -> None:
    class Nowhere(Squares):
        def __call__(self, batch: Images) -> Logits:
            return super().__call__(batch) * np.float32(np.nan)

    async with predicting(squares(Nowhere())) as predictor:
        with pytest.raises(EngineFailed, match="NaN or infinity"):
            await predictor.predict(png())


async def test_before_the_first_model_nobody_is_answered() -> None:
    predictor = Predictor(Settings())
    try:
        with pytest.raises(NotReady, match="loading"):
            await predictor.predict(png())
        with pytest.raises(NotReady):
            predictor.check(1, 10)
    finally:
        predictor.close()


async def test_after_the_end_nobody_is_answered() -> None:
    async with predicting() as predictor:
        predictor.close()
        with pytest.raises(Draining):
            await predictor.predict(png())


async def test_while_draining_everybody_is_answered() -> None:
    async with predicting() as predictor:
        predictor.drain()
        assert predictor.unready
        assert (await predictor.predict(png())).answer.class_index == 0


@pytest.mark.parametrize(("deadline", "granted"), [(0.1, 60.0), (60.0, 0.1), (0.1, None)])
async def test_the_shorter_deadline_passes_while_the_engine_hangs(
    deadline: float, granted: float | None
) -> None:
    gate = Gate()
    async with predicting(squares(Squares(hook=gate)), deadline=deadline) as predictor:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(DeadlineExceeded):
            await predictor.predict(png(), deadline=granted)
        assert 0.09 < loop.time() - began < 10
        gate.opened.set()


async def test_a_deadline_passes_while_the_decoders_are_busy() -> None:
    async with predicting(threads=1) as predictor:
        hold = threading.Event()
        busy = asyncio.get_running_loop().create_future()
        held = Pending((1, 1), FREE, lambda: np.array([hold.wait(30)]))
        predictor._decoders.submit(Job(busy, lambda: held, lambda *_: None, math.inf))
        with pytest.raises(DeadlineExceeded):
            await predictor.predict(png(), deadline=0.05)
        hold.set()
        assert (await predictor.predict(png())).answer.class_index == 0


async def test_a_cancelled_request_gives_its_permit_back_and_costs_no_pass() -> None:
    engine = Squares()
    gate = Gate()
    engine.hook = gate
    async with predicting(squares(engine), max_inflight=5) as predictor:
        held = asyncio.create_task(predictor.predict(png()))
        await entered(gate)
        leaving = [asyncio.create_task(predictor.predict(png())) for _ in range(4)]
        await until_async(lambda: predictor.batcher.depth == 4)
        with pytest.raises(Overloaded):
            await predictor.predict(png())
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert predictor.admission.inflight == 1
        engine.hook = None
        last = asyncio.create_task(predictor.predict(png()))
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(held, last)
        assert engine.batches == [1, 1]


async def test_a_request_takes_a_permit_for_each_of_its_images() -> None:
    gate = Gate()
    async with predicting(squares(Squares(hook=gate)), max_inflight=4) as predictor:
        with pytest.raises(TooLarge):
            await predictor.predict_many([png()] * 5)
        held = asyncio.create_task(predictor.predict_many([png()] * 3))
        await entered(gate)
        assert sample("pthserve_inflight_requests") == 3
        with pytest.raises(Overloaded):
            await predictor.predict_many([png()] * 2)
        gate.opened.set()
        await held


async def test_requests_in_flight_finish_on_the_model_they_began_with() -> None:
    old, new = Squares(), Squares()
    gate = Gate()
    old.hook = gate
    before, after = squares(old, digest="aa" * 32), squares(new, digest="bb" * 32)
    async with predicting(before) as predictor:
        first = [asyncio.create_task(predictor.predict(png())) for _ in range(4)]
        await entered(gate)
        predictor.adopt(after)
        second = [asyncio.create_task(predictor.predict(png())) for _ in range(4)]
        gate.opened.set()
        assert {one.model for one in await asyncio.gather(*first)} == {before}
        assert {one.model for one in await asyncio.gather(*second)} == {after}
        assert sum(old.batches) == sum(new.batches) == 4


async def test_a_stuck_engine_is_told_and_then_nobody_is_let_in() -> None:
    gate = Gate()
    async with predicting(squares(Squares(hook=gate)), deadline=0.1) as predictor:
        assert predictor.live() is None
        results = []
        while not predictor.live():
            results.append(await asyncio.gather(predictor.predict(png()), return_exceptions=True))
        assert "forward pass" in (predictor.live() or "")
        assert isinstance(results[0][0], DeadlineExceeded)
        held = asyncio.create_task(predictor.predict(png()))  # the first is let in, however it looks
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await predictor.predict(png())
        gate.opened.set()
        await asyncio.gather(held, return_exceptions=True)
        await until_async(lambda: predictor.live() is None)


async def test_a_dead_engine_thread_is_told() -> None:
    async with predicting() as predictor:
        predictor.batcher.close(10)
        assert "died" in (predictor.live() or "")


async def test_a_warm_up_goes_all_the_way_and_leaves_the_current_model_alone() -> None:
    engine = Squares()
    async with predicting() as predictor:
        current = predictor.current
        await predictor.warm_up(squares(engine, max_batch=4))
        assert engine.batches[:2] == [1, 4]
        assert sum(engine.batches[2:]) == 1 + min(4, predictor.cpus)
        assert predictor.current is current


async def test_answers_are_counted_by_label_and_confidence() -> None:
    label = {"label": "green"}
    before = sample("pthserve_predictions_total", **label)
    confident = sample("pthserve_prediction_confidence_count")
    decoded = sample("pthserve_stage_duration_seconds_count", stage="decode")
    async with predicting() as predictor:
        await predictor.predict_many([png(GREEN)] * 3)
    assert sample("pthserve_predictions_total", **label) - before == 3
    assert sample("pthserve_prediction_confidence_count") - confident == 3
    assert sample("pthserve_stage_duration_seconds_count", stage="decode") - decoded == 3


async def test_a_busy_engine_or_busy_decoders_saturate() -> None:
    gate = Gate()
    async with predicting(squares(Squares(hook=gate)), threads=1) as predictor:
        idle = predictor.saturation()
        held = asyncio.create_task(predictor.predict(png()))
        await entered(gate)
        await until_async(lambda: predictor.saturation() > idle)
        gate.opened.set()
        await held
