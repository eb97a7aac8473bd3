"""Which of an engine's requests runs a batch, and that every one comes back."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pthserve.engines.request_pool import Lanes


class Request:
    """Answers each image with its first value; counts the images of each pass."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.error: Exception | None = None
        self.inside = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def infer(self, inputs: list[NDArray[np.uint8]], share_inputs: bool) -> list[NDArray[np.float32]]:
        assert share_inputs
        self.start_async(inputs, share_inputs)
        self.wait()
        return [self.answer]

    def start_async(self, inputs: list[NDArray[np.uint8]], share_inputs: bool) -> None:
        assert share_inputs
        self.passes.append(len(inputs[0]))
        self.answer = inputs[0].reshape(len(inputs[0]), -1)[:, :1].astype(np.float32)

    def wait(self) -> None:
        self.inside.set()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error

    def get_output_tensor(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(data=self.answer)


def images(count: int) -> NDArray[np.uint8]:
    return np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)


def test_an_image_by_itself_gets_all_threads() -> None:
    one, lane = Request(), Request()
    assert Lanes(one, [lane])(images(1)).tolist() == [[0]]
    assert (one.passes, lane.passes) == ([1], [])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_batch_by_itself_is_split_among_the_lanes(count: int) -> None:
    one, lanes = Request(), [Request(), Request()]
    answers = Lanes(one, list(lanes))(images(count))
    assert answers[:, 0].tolist() == list(range(0, 4 * count, 4))
    assert one.passes == []
    assert sorted(lane.passes[0] for lane in lanes) == [count // 2, count - count // 2]


def test_without_a_request_for_one_an_image_has_a_lane() -> None:
    lane = Request()
    assert Lanes(None, [lane])(images(1)).tolist() == [[0]]
    assert lane.passes == [1]


def test_calls_at_once_have_a_lane_each_and_one_more_waits_for_a_lane() -> None:
    one, lanes = Request(), [Request(), Request()]
    run = Lanes(one, list(lanes))
    for request in (one, *lanes):
        request.go.clear()
    with ThreadPoolExecutor(4) as threads:
        alone = threads.submit(run, images(1))
        assert one.inside.wait(10)
        beside = [threads.submit(run, images(2)) for _ in lanes]
        assert all(lane.inside.wait(10) for lane in lanes)
        waiting = threads.submit(run, images(3))
        for request in (one, *lanes):
            request.go.set()
        assert [len(done.result(10)) for done in (alone, *beside, waiting)] == [1, 2, 2, 3]
    assert sorted(size for lane in lanes for size in lane.passes) in ([2, 2, 3], [1, 2, 2, 2])


@pytest.mark.parametrize("broken", [0, 1])
def test_a_pass_that_fails_gives_its_lanes_back(broken: int) -> None:
    lanes = [Request(), Request()]
    run = Lanes(Request(), list(lanes))
    lanes[broken].error = RuntimeError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        run(images(4))
    lanes[broken].error = None
    assert run(images(4))[:, 0].tolist() == [0, 4, 8, 12]


def test_a_batch_that_is_not_to_be_divided_leaves_the_other_lanes_to_others() -> None:
    one, lanes = Request(), [Request(), Request()]
    run = Lanes(one, list(lanes))
    for lane in lanes:
        lane.go.clear()
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(run, images(count), divided=False) for count in (8, 1)]
        assert all(lane.inside.wait(10) for lane in lanes)
        for lane in lanes:
            lane.go.set()
        assert [len(done.result(10)) for done in running] == [8, 1]
    assert one.passes == []
