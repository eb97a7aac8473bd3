"""pipeline: results in order, full batches, bounded memory, and an end when something fails."""

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pthserve.engines.base import Images as Batch
from pthserve.engines.base import Logits
from pthserve.errors import EngineFailed, NotFound, PthserveError
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.options import ModelOptions
from pthserve.scoring import pipeline
from pthserve.scoring.pipeline import Item, Pipeline, Scored

from ..linear import SPEC, Linear, linear, noise, png
from ..shared import until

BATCH = 4
MOST = 2 * pipeline.AHEAD * BATCH + 4 * 2 + 3
"""Images in a pipeline with two CPUs and three readers."""


class Pictures:
    """Images that are made when they are read. bad: indices to what is read in their place."""

    def __init__(self, count: int, bad: dict[int, bytes | Exception] | None = None) -> None:
        self.count = count
        self.bad = bad or {}
        self.read_so_far = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def read(self, index: int, most: int) -> bytes:
        with self._lock:
            self.read_so_far += 1
        found = self.bad[index] if index in self.bad else png(noise(index))
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        pass


class Recorded(Linear):
    """An engine that knows the sizes of its batches."""

    def __init__(self, spec: Spec = SPEC) -> None:
        super().__init__(spec, 5)
        self.batches: list[int] = []

    def __call__(self, batch: Batch) -> Logits:
        self.batches.append(len(batch))
        return super().__call__(batch)


def made(engine: Linear, *, cpus: int = 2) -> Model:
    return replace(linear(engine), options=ModelOptions(max_batch=BATCH, threads=cpus))


def through(model: Model, images: Pictures, **fields: Any) -> Iterator[Scored]:
    arguments: dict[str, Any] = {"readers": 3, "max_bytes": 2**20, "decode_memory": 2**28, **fields}
    items = (Item(images, index, None) for index in range(len(images)))
    return Pipeline(model, lambda answer: answer.to_dict(0), **arguments).run(items)


def indices(results: Sequence[Scored]) -> list[int]:
    return [one.item.number for one in results]


def test_results_have_the_order_of_the_items_and_the_answers_of_the_model() -> None:
    model = made(Linear(SPEC, 5))
    results = list(through(model, Pictures(50)))
    assert indices(results) == list(range(50))
    for one in results:
        assert one.row is not None
        expected = model(png(noise(one.item.number))).probabilities
        np.testing.assert_array_equal(one.row["probabilities"], expected)
        assert one.size == (64, 48)


def test_batches_are_full_but_for_the_last() -> None:
    engine = Recorded()
    count = 5 * BATCH + 1
    assert count < MOST - BATCH, "there is room for all at once"
    assert len(list(through(made(engine), Pictures(count)))) == count
    assert engine.batches == [BATCH] * 5 + [1]


def test_a_batch_is_short_only_if_all_others_wait_for_the_results_of_its_images() -> None:
    """One that is decoded late may hold up as many as there is room for; all these leave with it."""
    engine = Recorded()
    count = 40 * BATCH
    assert len(list(through(made(engine), Pictures(count)))) == count
    assert sum(size < BATCH for size in engine.batches) <= 1 + count // (MOST - BATCH)


def test_bad_images_are_results_with_the_error_that_the_service_would_give() -> None:
    bad: dict[int, bytes | Exception] = {
        0: b"no image",
        3: png(noise(3))[:200],
        5: NotFound("the file is gone"),
        9: b"",
    }
    results = list(through(made(Linear(SPEC, 5)), Pictures(10, bad)))
    assert indices(results) == list(range(10))
    assert [one.item.number for one in results if one.error is not None] == sorted(bad)
    assert results[5].error == "the file is gone"
    assert "not a supported image" in (results[0].error or "")
    assert all((one.row is None) == (one.error is not None) for one in results)


def test_an_image_with_too_many_pixels_costs_no_more_than_its_header() -> None:
    model = made(Linear(SPEC, 5))
    model = replace(model, options=model.options.model_copy(update={"max_pixels": 48 * 64 - 1}))
    (one,) = through(model, Pictures(1))
    assert "3072" in (one.error or "") or "pixels" in (one.error or "")


def test_an_image_that_needs_more_memory_than_there_is_is_a_result_with_an_error() -> None:
    (one,) = through(made(Linear(SPEC, 5)), Pictures(1), decode_memory=1000)
    assert "decode_memory" in (one.error or "")


def test_nothing_is_scored_of_nothing() -> None:
    assert not list(through(made(Linear(SPEC, 5)), Pictures(0)))


def test_an_answer_that_is_not_a_number_is_an_error_of_its_image_alone() -> None:
    class Broken(Linear):
        def __call__(self, batch: Batch) -> Logits:
            logits = super().__call__(batch)
            logits[0] = np.nan
            return logits

    results = list(through(made(Broken(SPEC, 5)), Pictures(2 * BATCH)))
    assert sum(one.error is not None for one in results) == 2
    assert all("NaN" in one.error for one in results if one.error)


def test_images_are_read_ahead_only_so_far_while_the_engine_is_busy() -> None:
    engine = Linear(SPEC, 5)
    images = Pictures(10_000)
    engine.gate.clear()
    results = through(made(engine), images)
    first = threading.Thread(target=lambda: next(results))
    first.start()
    until(lambda: images.read_so_far == MOST)
    assert not first.join(0.2)
    assert images.read_so_far == MOST
    engine.gate.set()
    first.join()
    results.close()  # type: ignore[attr-defined]
    assert images.read_so_far < 100


def test_no_image_is_read_while_those_in_memory_are_as_large_as_they_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "HELD", 1)
    engine = Linear(SPEC, 5)
    images = Pictures(50)
    engine.gate.clear()
    taken: list[Scored] = []
    taking = threading.Thread(target=lambda: taken.extend(through(made(engine), images, readers=3)))
    taking.start()
    until(lambda: images.read_so_far)
    taking.join(0.2)
    assert images.read_so_far <= 3
    engine.gate.set()
    taking.join()
    assert indices(taken) == list(range(50))


def test_a_forward_pass_that_fails_ends_the_run() -> None:
    class Failing(Linear):
        def __call__(self, batch: Batch) -> Logits:
            raise MemoryError("no room")

    with pytest.raises(EngineFailed, match="no room"):
        list(through(made(Failing(SPEC, 5)), Pictures(100)))


@pytest.mark.parametrize("error", [PthserveError("the network is gone"), OSError("the disk is gone")])
def test_a_source_that_fails_ends_the_run(error: Exception) -> None:
    with pytest.raises(type(error), match="is gone"):
        list(through(made(Linear(SPEC, 5)), Pictures(100, {50: error})))


def test_no_thread_is_left_whenever_the_results_are_no_longer_taken() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    before = set(threading.enumerate())
    for _ in range(20):
        results = through(made(Linear(SPEC, 5)), Pictures(30))
        for _ in range(random.randrange(30)):
            next(results)
        results.close()  # type: ignore[attr-defined]
        until(lambda: set(threading.enumerate()) <= before, "the end of the threads")


def test_slow_sources_are_read_by_all_readers_at_the_same_time_whenever_there_is_room() -> None:
    readers = 8
    together = threading.Barrier(readers)

    class Slow(Pictures):
        def read(self, index: int, most: int) -> bytes:
            together.wait(30)  # breaks unless all readers are here
            return super().read(index, most)

    count = 40 * readers  # several times what may be in the pipeline
    assert len(list(through(made(Linear(SPEC, 5)), Slow(count), readers=readers))) == count
