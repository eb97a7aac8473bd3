"""Background: a coroutine that runs in a thread of its own while a block does."""

import asyncio
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Background(ABC):
    """Runs `_run` from the block's beginning on, and at its end sets `_stopped` and waits for it."""

    ends_within = 30.0
    """Seconds that `_run` may take to end once `_stopped` is set."""

    def __enter__(self) -> Self:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(self.ends_within)
        assert not self._thread.is_alive()

    @abstractmethod
    async def _run(self) -> None: ...
