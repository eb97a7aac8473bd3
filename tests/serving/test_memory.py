"""Memory that was freed goes back to the system, when nobody waits."""

import asyncio
import itertools
import re
import subprocess
import sys

import psutil
import pytest

from pthserve.serving import memory

from ..shared import until_async


def resident() -> float:
    """MiB of this process."""
    return float(psutil.Process().memory_info().rss) / 2**20


def test_what_lies_free_between_what_is_in_use_is_given_back() -> None:
    pieces = [b"x" * (100_000 + number) for number in range(3000)]
    full = resident()
    kept = pieces[::100]
    del pieces
    memory.give_back()
    assert resident() < full - 200
    assert len(kept) == 30


async def test_it_is_given_back_only_while_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    looks = itertools.count()
    nothing_to_do = False

    def idle() -> bool:
        next(looks)
        return nothing_to_do

    monkeypatch.setattr(memory, "EVERY", 0.0)
    monkeypatch.setattr(memory, "SOON", 0.0)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(True))
    giving = asyncio.create_task(memory.give_back_when(idle))
    await until_async(lambda: next(looks) > 1000)
    assert not given
    nothing_to_do = True
    await until_async(lambda: given)
    giving.cancel()


def test_what_lies_free_at_the_end_of_what_a_thread_used_is_given_back() -> None:
    script = (
        "import threading\n"
        "import psutil\n"
        "from pthserve.serving import memory\n"
        "memory.configure()\n"
        "def work():\n"
        "    [b'x' * (100_000 + size) for size in range(500)]\n"
        "    memory.give_back()\n"
        "    print(psutil.Process().memory_info().rss)\n"
        "before = psutil.Process().memory_info().rss\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
        "print(before)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    after, before = map(int, said.split())
    assert after < before + 10 * 2**20


def test_threads_share_one_arena() -> None:
    script = (
        "import ctypes, threading\n"
        "from pthserve.serving import memory\n"
        "memory.configure()\n"
        "libc = ctypes.CDLL(None)\n"
        "gate = threading.Barrier(20)\n"
        "def work():\n"
        "    gate.wait()\n"
        "    for _ in range(1000):\n"
        "        libc.malloc(1000)\n"
        "    gate.wait()\n"
        "threads = [threading.Thread(target=work) for _ in range(20)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "libc.malloc_stats()\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert len(re.findall(r"^Arena \d+:", said, re.MULTILINE)) == 1


def test_the_buffers_of_one_batch_serve_the_next_without_new_pages() -> None:
    script = (
        "import resource\n"
        "from pthserve.serving import memory\n"
        "memory.configure()\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "piece = b'x' * 600_000\n"
        "[bytearray(piece) for _ in range(4)]\n"
        "before = faults()\n"
        "for _ in range(100):\n"
        "    [bytearray(piece) for _ in range(4)]\n"
        "print(faults() - before)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(said) < 1000  # otherwise 588 pages for each of the 100 batches
