"""The service follows its CPU limit: the engine is rebuilt beside the old one, all else follows at once."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest

from pthserve.engines.base import Images
from pthserve.errors import EngineError
from pthserve.metrics import REGISTRY
from pthserve.planning.plan import Plan
from pthserve.serving import resize
from pthserve.serving.predictor import Predictor
from pthserve.serving.reload import Reload
from pthserve.serving.resize import Resize
from pthserve.settings import Settings

from ..shared import until, until_async
from .squares import Gate, Squares, png, squares


class Sized(Squares):
    """Squares on `threads`.

    made: all engines that came of it, itself too. fails: what making another one raises.
    hook_of_next: the hook of the next one.
    """

    def __init__(self, threads: int, made: "list[Sized] | None" = None) -> None:
        super().__init__()
        self.threads = threads
        self.made = [] if made is None else made
        self.made.append(self)
        self.fails: Exception | None = None
        self.hook_of_next: Callable[[Images], None] | None = None

    def with_threads(self, threads: int) -> "Sized":
        if self.fails is not None:
            raise self.fails
        other = Sized(threads, self.made)
        other.hook = self.hook_of_next
        return other


class Limit:
    """The CPU limit that the service sees."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus

    def __call__(self) -> int:
        return self.cpus


class Service:
    def __init__(self, engine: Squares, limit: Limit, threads_per_cpu: float) -> None:
        self.limit = limit
        self.changes: list[int] = []
        settings = Settings(threads=limit.cpus)
        self.predictor = Predictor(settings)
        self.engine = engine
        model = squares(engine)
        plan = replace(model.plan, threads=engine.threads, reason="measured")
        first = [replace(model, plan=plan, threads_per_cpu=threads_per_cpu)]
        self.reload = Reload(self.predictor, settings, first.pop)
        self.resize = Resize(self.predictor, self.reload, self.changes.append)

    @property
    def plan(self) -> Plan:
        return self.predictor.model().plan

    def decodes_on(self, threads: int) -> bool:
        return len(self.predictor._decoders._threads) == threads

    def runs_on(self, threads: int) -> bool:
        return self.plan.threads == threads

    async def change(self, cpus: int) -> None:
        self.limit.cpus = cpus
        await self.resize.look()


@asynccontextmanager
async def served(
    monkeypatch: pytest.MonkeyPatch, engine: Squares, cpus: int, *, threads_per_cpu: float = 1.0
) -> AsyncIterator[Service]:
    limit = Limit(cpus)
    monkeypatch.setattr(resize, "cpu_quota", limit)
    service = Service(engine, limit, threads_per_cpu)
    try:
        await service.reload.first()
        yield service
    finally:
        service.reload.close()
        service.predictor.close()


async def test_engine_decoders_and_metric_follow_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Sized(4)
    async with served(monkeypatch, engine, 4) as service:
        for cpus in (1, 6, 4):
            await service.change(cpus)
            assert (service.predictor.cpus, service.plan.threads) == (cpus, cpus)
            assert REGISTRY.get_sample_value("pthserve_cpus") == cpus
            assert (await service.predictor.predict(png())).model.forward.threads == cpus
            await until_async(partial(service.decodes_on, max(2, cpus)))
        assert service.plan.reason == "measured; resized to 4 threads"
        assert service.changes == [1, 6, 4]


async def test_nothing_is_rebuilt_where_the_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Sized(2)
    async with served(monkeypatch, engine, 2) as service:
        await service.change(2)
        assert (engine.made, service.changes) == ([engine], [])


async def test_the_engine_before_is_closed_once_its_last_request_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, gate = Sized(2), Gate()
    async with served(monkeypatch, engine, 2) as service:
        engine.hook = gate
        held = asyncio.create_task(service.predictor.predict(png()))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        changing = asyncio.create_task(service.change(1))
        await until_async(lambda: len(engine.made) == 2)
        gate.opened.set()
        assert (await held).model.forward is engine
        await changing
        assert not engine.made[1].closed
        del held

        def closed() -> bool:
            gc.collect()
            return engine.closed

        await until_async(closed)  # once the engine's thread, too, has let go of the last batch


async def test_requests_are_answered_by_the_engine_before_until_the_new_one_is_warm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, gate = Sized(2), Gate()
    async with served(monkeypatch, engine, 2) as service:
        engine.hook_of_next = gate
        changing = asyncio.create_task(service.change(1))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        answered = await service.predictor.predict(png())
        assert answered.model.forward is engine
        gate.opened.set()
        await changing
        assert (await service.predictor.predict(png())).model.forward is engine.made[1]


async def test_a_plan_that_uses_half_of_the_cpus_goes_on_to_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Sized(4)
    async with served(monkeypatch, engine, 8, threads_per_cpu=0.5) as service:
        for cpus, threads in ((2, 1), (1, 1), (8, 4)):
            await service.change(cpus)
            assert service.plan.threads == threads


async def test_a_model_that_was_loaded_for_another_limit_is_made_to_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Sized(8)
    async with served(monkeypatch, engine, 2) as service:
        await service.change(2)
        assert service.plan.threads == 2


@pytest.mark.parametrize(
    ("error", "told"), [(EngineError("no memory"), False), (MemoryError(), True)], ids=["expected", "bug"]
)
async def test_an_engine_that_cannot_be_rebuilt_stays_and_is_tried_again_at_the_next_change(
    error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Sized(2)
    async with served(monkeypatch, engine, 2) as service:
        engine.fails = error
        await service.change(1)
        await service.resize.look()
        (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
        assert "keeps its 2 threads" in record.getMessage()
        assert type(error).__name__ in record.getMessage()
        assert bool(record.exc_info) is told
        assert (service.predictor.cpus, service.plan.threads) == (1, 2)
        assert (await service.predictor.predict(png())).model.forward is engine

        engine.fails = None
        await service.change(3)
        assert service.plan.threads == 3


async def test_while_a_model_is_loaded_everything_else_follows_and_the_engine_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Sized(2)
    async with served(monkeypatch, engine, 2) as service:
        async with service.reload.turn:
            await service.change(1)
            assert (service.predictor.cpus, service.plan.threads) == (1, 2)
        await service.resize.look()
        assert service.plan.threads == 1


async def test_an_engine_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Squares()
    async with served(monkeypatch, engine, 2) as service:
        await service.change(4)
        assert (service.predictor.cpus, service.predictor.model().forward) == (4, engine)


async def test_the_limit_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "EVERY", 0.01)
    engine = Sized(2)
    async with served(monkeypatch, engine, 2) as service:
        watching = asyncio.create_task(service.resize.watch())
        for cpus in (1, 2):
            service.limit.cpus = cpus
            await until_async(partial(service.runs_on, cpus))
        watching.cancel()


def test_no_thread_is_left_of_the_decoders_that_went() -> None:
    predictor = Predictor(Settings(threads=8))
    threads = set(predictor._decoders._threads)
    predictor.resize(2)
    until(lambda: sum(thread.is_alive() for thread in threads) == 2)
    assert len(predictor._decoders._threads) == 2
    predictor.close()
