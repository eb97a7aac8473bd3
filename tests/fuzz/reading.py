"""Many files that are broken in any way: each is read or refused, soon and in a few words."""

import random
import time
from collections import Counter
from collections.abc import Callable

from pthserve.errors import ModelError
from pthserve.text import MESSAGE

LONGEST = 60.0
"""Seconds that one file may take, on a machine that is busy with other tests."""


def read_many(
    seed: int, kind: str, count: int, read: Callable[[random.Random], object], check: Callable[[], object]
) -> Counter[str]:
    """Read `count` files of a kind, and run `check` after each; how many were `read`, and `refused`.

    Args:
        read: makes a file with these dice, and reads it; it may raise ModelError.
    """
    outcomes: Counter[str] = Counter()
    for number in range(count):
        place = f"--fuzz-seed {seed}, {kind} {number}"
        began = time.monotonic()
        try:
            read(random.Random(f"{seed} {kind} {number}"))
            outcomes["read"] += 1
        except ModelError as error:
            outcomes["refused"] += 1
            message = str(error)
            assert message.isprintable(), f"{place}: {message!r}"
            assert len(message) < MESSAGE + 50, f"{place}: {len(message)} characters"
        except Exception as error:
            raise AssertionError(f"{place}: {error!r}") from error
        assert time.monotonic() - began < LONGEST, f"{place} took too long"
        try:
            check()
        except AssertionError as error:
            raise AssertionError(f"{place}: {error}") from error
    print(kind, dict(outcomes))
    return outcomes
