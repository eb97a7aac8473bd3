"""A bound on what building a module may take, whatever arguments or configuration ask for."""

from collections.abc import Iterable
from typing import Any

from torch.overrides import TorchFunctionMode


class BoundedBuild(TorchFunctionMode):
    """Stops what would build layers without end."""

    def __init__(self, most: int, known: str) -> None:
        """most: calls of PyTorch. known: what takes fewer of them, in words, for the message."""
        super().__init__()
        self._calls, self._most, self._known = 0, most, known

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count the call, and make it; raises ValueError for one too many."""
        self._calls += 1
        if self._calls > self._most:
            raise ValueError(f"it has more layers than any {self._known}")
        return self.call(func, args, dict(kwargs or {}))

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call; a subclass may make another one."""
        return func(*args, **kwargs)
