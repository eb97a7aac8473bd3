"""How entries become batches, and batches answers."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pthserve.engines.base import Images
from pthserve.errors import EngineFailed
from pthserve.loading.model import Model
from pthserve.serving.batcher import Batcher, Entry, Inference

from ..shared import until, until_async
from .squares import BLUE, GREEN, RED, SPEC, Gate, Squares, answer, pixels, squares

COLOURS = (RED, GREEN, BLUE)
CROP = SPEC.crop


@contextmanager
def running(max_batch: int | None = None) -> Iterator[Batcher]:
    batcher = Batcher(max_batch)
    try:
        yield batcher
    finally:
        batcher.close(10)


def entry(model: Model, colour: tuple[int, int, int] = RED) -> Entry:
    return Entry(model, asyncio.get_running_loop().create_future(), pixels(colour, CROP))


def put(batcher: Batcher, entries: list[Entry]) -> Awaitable[list[Inference]]:
    for one in entries:
        batcher.put(one)
    return asyncio.gather(*(one.future for one in entries))


def blocked(batcher: Batcher, engine: Squares) -> tuple[Gate, Entry]:
    """An entry that holds the engine until the gate is opened, so that what is put queues."""
    gate = Gate()
    engine.hook = gate
    first = entry(squares(engine))
    batcher.put(first)
    assert gate.entered.wait(10)
    return gate, first


async def test_a_lone_image_is_answered_at_once_and_alone() -> None:
    with running() as batcher:
        (inference,) = await put(batcher, [entry(squares())])
        assert inference.batch == 1
        assert inference.logits.argmax() == 0


async def test_what_queued_while_the_engine_was_busy_is_one_batch() -> None:
    engine = Squares()
    model = squares(engine)
    with running() as batcher:
        gate, first = blocked(batcher, engine)
        queued = put(batcher, [entry(model, COLOURS[number % 3]) for number in range(5)])
        assert batcher.depth == 5
        gate.opened.set()
        inferences = await queued
        await first.future
        assert engine.batches == [1, 5]
        assert [one.batch for one in inferences] == [5] * 5
        assert [one.logits.argmax() for one in inferences] == [0, 1, 2, 0, 1]


async def test_an_engine_with_two_lanes_runs_two_passes_at_once_and_no_third() -> None:
    gate, both = Gate(), threading.Semaphore(0)

    def hook(batch: Images) -> None:
        both.release()
        gate(batch)

    engine = Squares(hook=hook, lanes=2)
    model = squares(engine)
    with running() as batcher:
        queued = put(batcher, [entry(model)])
        assert both.acquire(timeout=10)
        second = put(batcher, [entry(model, BLUE)])
        assert both.acquire(timeout=10)
        third = put(batcher, [entry(model) for _ in range(4)])
        assert batcher.depth == 4
        gate.opened.set()
        inferences = [*await queued, *await second, *await third]
        assert [one.logits.argmax() for one in inferences] == [0, 2, 0, 0, 0, 0]
        # The first lane to be free takes half of the four. The lanes may start their passes in either order.
        assert sorted(engine.batches) == [1, 1, 1, 1, 2]


async def test_two_engines_never_run_at_once() -> None:
    running_now: list[Squares] = []
    seen: list[int] = []

    class Watched(Squares):
        def __call__(self, batch: Images) -> np.ndarray:
            running_now.append(self)
            logits = super().__call__(batch)
            seen.append(len(set(running_now)))
            running_now.remove(self)
            return logits

    models = [squares(Watched(0.001, lanes=2)) for _ in range(2)]
    with running() as batcher:
        await put(batcher, [entry(models[number // 3 % 2]) for number in range(60)])
    assert set(seen) == {1}


@pytest.mark.parametrize(("setting", "plan", "sizes"), [(None, 4, [4, 4, 1]), (3, 8, [3, 3, 3])])
async def test_a_batch_is_no_larger_than_the_setting_or_else_the_plan_allows(
    setting: int | None, plan: int, sizes: list[int]
) -> None:
    engine = Squares()
    model = squares(engine, max_batch=plan)
    with running(setting) as batcher:
        gate, _ = blocked(batcher, engine)
        queued = put(batcher, [entry(model) for _ in range(9)])
        gate.opened.set()
        await queued
        assert engine.batches[1:] == sizes


async def test_only_one_kind_of_array_is_in_a_batch() -> None:
    engine = Squares()
    model = squares(engine)
    with running() as batcher:
        gate, _ = blocked(batcher, engine)
        kinds = [entry(model) for _ in range(5)]
        for floating in (kinds[2], kinds[3]):
            floating.image = np.zeros(SPEC.tensor_shape, np.float32)
        queued = put(batcher, kinds)
        gate.opened.set()
        await queued
        assert engine.batches[1:] == [2, 2, 1]


async def test_each_entry_is_answered_by_the_model_it_was_admitted_for() -> None:
    holder, old, new = Squares(), Squares(), Squares()
    models = [squares(old), squares(old), squares(new), squares(new)]
    models[1], models[3] = models[0], models[2]
    with running() as batcher:
        gate, _ = blocked(batcher, holder)
        queued = put(batcher, [entry(model) for model in models])
        gate.opened.set()
        await queued
        assert (old.batches, new.batches) == ([2], [2])


async def test_what_nobody_waits_for_any_more_costs_no_forward_pass() -> None:
    engine = Squares()
    model = squares(engine)
    with running() as batcher:
        gate, _ = blocked(batcher, engine)
        entries = [entry(model) for _ in range(6)]
        queued = asyncio.gather(put(batcher, entries), return_exceptions=True)
        for left in entries[1:4]:
            left.future.cancel()
        gate.opened.set()
        await asyncio.gather(entries[0].future, *(one.future for one in entries[4:]))
        await queued
        assert engine.batches == [1, 3]


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), RuntimeError("CUDA error")])
async def test_an_engine_that_raises_fails_its_batch_and_not_the_next(error: Exception) -> None:
    engine = Squares()
    model = squares(engine)

    def fail(_: Images) -> None:
        raise error

    with running() as batcher:
        engine.hook = fail
        failed = await asyncio.gather(*(_caught(put(batcher, [entry(model)])) for _ in range(3)))
        assert all(isinstance(one, EngineFailed) for one in failed)
        assert type(error).__name__ in str(failed[0])
        engine.hook = None
        (inference,) = await put(batcher, [entry(model)])
        assert inference.logits.argmax() == 0
        assert batcher.alive


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (3,)])
async def test_an_engine_that_answers_another_shape_has_failed(shape: tuple[int, ...]) -> None:
    class Wrong(Squares):
        def __call__(self, batch: Images) -> np.ndarray:
            return np.zeros(shape, np.float32)

    with running() as batcher:
        assert isinstance(await _caught(put(batcher, [entry(squares(Wrong()))])), EngineFailed)


async def test_how_long_the_engine_has_been_at_it_is_known() -> None:
    engine = Squares()
    with running() as batcher:
        assert batcher.stuck_for() == 0
        gate, first = blocked(batcher, engine)
        await until_async(lambda: batcher.stuck_for() > 0.05)
        assert batcher.overdue() > 0
        gate.opened.set()
        await first.future
        assert batcher.stuck_for() == batcher.overdue() == 0


async def test_what_an_image_costs_is_measured() -> None:
    model = squares(Squares(seconds=0.01))
    with running() as batcher:
        inferences = [one for _ in range(3) for one in await put(batcher, [entry(model) for _ in range(4)])]
        costs = [one.infer / one.batch for one in inferences]
        assert 0.01 <= min(costs) <= batcher.seconds_per_image <= max(costs)


def test_a_thread_that_is_gone_shows() -> None:
    batcher = Batcher()
    assert batcher.alive
    batcher.close(10)
    assert not batcher.alive


async def test_what_is_queued_at_the_end_is_still_answered() -> None:
    engine = Squares()
    model = squares(engine)
    batcher = Batcher(max_batch=1)
    gate, first = blocked(batcher, engine)
    queued = put(batcher, [entry(model) for _ in range(3)])
    closing = threading.Thread(target=batcher.close, args=(10,))
    closing.start()
    gate.opened.set()
    await asyncio.gather(first.future, queued)
    closing.join()
    assert not batcher.alive


def test_a_model_is_freed_when_the_last_entry_that_holds_it_leaves() -> None:
    freed = threading.Event()

    async def check() -> None:
        model = squares()
        weakref.finalize(model.forward, freed.set)
        await put(batcher, [entry(model)])

    with running() as batcher:
        asyncio.run(check())

        def is_freed() -> bool:
            gc.collect()
            return freed.is_set()

        until(is_freed)


async def test_many_threads_may_put_and_each_entry_gets_its_own_answer() -> None:
    model = squares()
    entries = [entry(model, COLOURS[number % 3]) for number in range(300)]
    with running() as batcher:
        threads = [
            threading.Thread(target=lambda part: [batcher.put(one) for one in part], args=(entries[n::6],))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        inferences = await asyncio.gather(*(one.future for one in entries))
        for thread in threads:
            thread.join()
        for number, inference in enumerate(inferences):
            exponents = np.exp(inference.logits)
            expected = answer(COLOURS[number % 3])
            np.testing.assert_allclose(exponents / exponents.sum(), expected, atol=1e-5)


async def _caught(awaited: Awaitable[object]) -> object:
    try:
        return await awaited
    except EngineFailed as error:
        return error
