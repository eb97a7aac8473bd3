"""A model is replaced again and again under full load, by good ones and by broken ones: nobody notices."""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ..running import Running, running
from .asking import Answer, Clients, post
from .models import MODULES, card, image, make, save, says, state

pytestmark = pytest.mark.slow

RELOADS = 200
CLIENTS = 8
IMAGES = [image(seed) for seed in range(20)]
GOOD = (state(1), state(2))
ANSWERS = [says(weights, IMAGES) for weights in GOOD]
GOLDEN = int(np.flatnonzero(ANSWERS[0].argmax(1) == ANSWERS[1].argmax(1))[0])
"""An image that both good models give the same class."""
CLASS = int(ANSWERS[0][GOLDEN].argmax())


@dataclass
class Folder:
    """A model's folder, as somebody changes it while the service runs."""

    path: Path
    digests: list[str] = field(default_factory=list)

    def lay(self, **fields: Any) -> None:
        """Its card, with the golden image and other `fields`."""
        card(self.path, **{"golden": [{"image": "golden.png", "class_index": CLASS}], **fields})

    def put(self, weights: Any) -> str:
        """Put `weights` in; their digest."""
        save(weights, self.path / "model.pth")
        return hashlib.sha256((self.path / "model.pth").read_bytes()).hexdigest()


def _bad_hash(folder: Folder) -> None:
    folder.lay(sha256="0" * 64)


def _nan(folder: Folder) -> None:
    folder.put(GOOD[1] | {"head.bias": torch.full((4,), float("nan"))})


def _wrong_classes(folder: Folder) -> None:
    folder.lay(kwargs={"classes": 5}, golden=None)
    folder.put(state(3, 5))


def _golden_disagreement(folder: Folder) -> None:
    folder.put(GOOD[1] | {"head.bias": 100.0 * torch.eye(4)[(CLASS + 1) % 4]})


def _missing(folder: Folder) -> None:
    (folder.path / "model.pth").unlink()


def _truncated(folder: Folder) -> None:
    file = folder.path / "model.pth"
    os.truncate(file, file.stat().st_size // 2)


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/this-must-never-be",)


def _code(folder: Folder) -> None:
    folder.put(GOOD[1] | {"head.weight": _Code()})


def _another_name(folder: Folder) -> None:
    folder.lay(name="other")


def _no_card(folder: Folder) -> None:
    (folder.path / "model.yaml").write_text("name: [")


@contextmanager
def _while_it_is_read(change: Callable[[Path], None], folder: Folder) -> Iterator[None]:
    """Change a file of some size all the time."""
    folder.put({"state_dict": GOOD[0], "optimizer": torch.zeros(6 * 2**20)})
    done = threading.Event()

    def keep_on() -> None:
        while not done.is_set():
            change(folder.path / "model.pth")

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _touch_up(file: Path) -> None:
    with file.open("r+b") as writing:
        writing.seek(-1, os.SEEK_END)
        writing.write(b"\0")
    time.sleep(0.001)


def _replace(file: Path) -> None:
    fresh = file.with_name(".again")
    fresh.write_bytes(file.read_bytes()[:1000])
    fresh.replace(file)
    time.sleep(0.001)


BROKEN: dict[str, tuple[Callable[[Folder], AbstractContextManager[None] | None], str]] = {
    "bad hash": (_bad_hash, "SHA-256 .* is expected"),
    "NaN weights": (_nan, r"head\.bias contains NaN or infinity"),
    "wrong classes": (_wrong_classes, "5 classes, but the current one has 4"),
    "golden disagreement": (_golden_disagreement, f"the golden images disagree: golden.png: .*not {CLASS}"),
    "changed while read": (
        lambda folder: _while_it_is_read(_touch_up, folder),
        "changed while it was being (read|loaded)",
    ),
    "replaced while read": (
        lambda folder: _while_it_is_read(_replace, folder),
        "changed while it was being (read|loaded)|truncated or damaged",
    ),
    "missing file": (_missing, "model.pth does not exist"),
    "truncated": (_truncated, "truncated or damaged"),
    "code": (_code, r"head\.weight"),
    "another name": (_another_name, "'other', but the current one 'net'"),
    "broken card": (_no_card, "model.yaml: line"),
}


@dataclass
class Swap:
    """A model that took its predecessor's place some time between `asked` and `done`."""

    asked: float
    done: float
    digest: str


async def load(service: Running) -> tuple[int, str]:
    """Have the model reloaded; the status, and the error if there is one."""
    reply = await asyncio.to_thread(service.client.post, "/v2/repository/models/net/load")
    return reply.status_code, reply.json()["error"] if reply.content else ""


async def hang_up(service: Running) -> tuple[int, str]:
    """As `load`, by a signal."""
    count = await asyncio.to_thread(service.metric, 'pthserve_model_loads_total{result="ok"}')
    service.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 30
    while count == await asyncio.to_thread(service.metric, 'pthserve_model_loads_total{result="ok"}'):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    return 200, ""


async def swaps(service: Running, folder: Folder, count: int) -> tuple[list[Swap], list[str], list[float]]:
    """Replace the model `count` times, every third time by a broken one; what was said of those; MiB."""
    done, refused, memory = [Swap(0.0, 0.0, folder.put(GOOD[0]))], [], []
    ways = list(BROKEN)
    for number in range(count):
        if number % 3 == 2:
            way, words = BROKEN[ways[number // 3 % len(ways)]]
            with way(folder) or contextlib.nullcontext():
                status, error = await load(service)
            assert status == 409, (ways[number // 3 % len(ways)], status, error)
            assert re.search(words, error), (words, error)
            info = (await asyncio.to_thread(service.client.get, "/info")).json()
            assert info["last_reload"]["error"] == error
            assert info["last_reload"]["result"] == ("golden" if "golden images" in error else "failed")
            assert info["digest"] == done[-1].digest
            refused.append(error)
            folder.lay()
        else:
            began = time.perf_counter()
            digest = folder.put(GOOD[len(done) % 2])
            status, error = await (hang_up if number % 10 == 0 else load)(service)
            assert status == 200, error
            done.append(Swap(began, time.perf_counter(), digest))
        if number % 10 == 9:
            memory.append(await asyncio.to_thread(service.memory))
    return done, refused, memory


async def test_200_reloads_under_full_load_lose_no_request_and_mix_no_models(tmp_path: Path) -> None:
    folder = Folder(make(tmp_path / "net"))
    (folder.path / "golden.png").write_bytes(IMAGES[GOLDEN])
    folder.lay()
    folder.put(GOOD[0])
    apart = np.abs(ANSWERS[0] - ANSWERS[1]).max(1)
    assert apart.min() > 0.01, "nobody could tell the models apart"

    async def check(service: Running) -> tuple[Clients, list[Swap], list[str], list[float]]:
        clients = Clients(service.address, [post(data) for data in IMAGES])
        async with clients.busy(CLIENTS):
            return clients, *await swaps(service, folder, RELOADS)

    began = time.monotonic()
    with running(
        folder.path, tmp_path / "log", "--engine", "torch", "--precision", "fp32", modules=MODULES
    ) as service:
        clients, done, refused, memory = await check(service)
        metric = {
            result: service.metric(f'pthserve_model_loads_total{{result="{result}"}}')
            for result in ("ok", "failed", "golden")
        }
        log = service.log.read_text()
    seconds = time.monotonic() - began
    print(f"{RELOADS} reloads in {seconds:.0f} s, {len(refused)} refused; {len(clients.answers)} answers")
    print("MiB", [round(each) for each in memory])

    wrong = [answer for answer in clients.answers if answer.status != 200]
    assert not wrong, wrong[:3]
    digests = [done[0].digest, done[1].digest]
    for answer in clients.answers:
        digest = answer.said["model"]["digest"]
        assert digest in allowed(answer, done), "an answer of a model that was not served then"
        expected = ANSWERS[digests.index(digest)][answer.asked]
        assert np.abs(np.array(answer.said["probabilities"]) - expected).max() < 1e-4
    assert len(refused) == RELOADS // 3
    golden = sum("golden images" in error for error in refused)
    assert metric == {"ok": len(done), "failed": len(refused) - golden, "golden": golden}
    for error in refused:
        assert f"the model was not replaced: {error}" in log
    assert not Path("/tmp/this-must-never-be").exists()
    assert min(memory[-5:]) < 1.05 * min(memory[5:10])


def allowed(answer: Answer, done: list[Swap]) -> set[str]:
    """The models that may have given `answer`: those that were served between its request and its arrival."""
    before = [swap for swap in done if swap.done <= answer.sent]
    during = [swap for swap in done if swap.done > answer.sent and swap.asked < answer.came]
    return {swap.digest for swap in (*before[-1:], *during)}
