"""Bounds on what building a module may take, whatever arguments or configuration ask for."""

from collections.abc import Iterable
from typing import Any

from torch.overrides import TorchFunctionMode

from pthserve.errors import ArchitectureError
from pthserve.text import quoted

NUMBER = 2**20
"""The largest number of an argument or a configuration: it may be the length of a list that is made. Widths
and sizes are below."""
_DEPTH = 4


def check_numbers(value: Any, place: str, depth: int = 0) -> None:
    """Raise ArchitectureError where a number in `value`, which stands at `place`, is larger than NUMBER."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > NUMBER:
        raise ArchitectureError(f"{place}: must be at most {NUMBER}, and is {_short(value)}")
    if depth < _DEPTH:
        for key, inner in value.items() if isinstance(value, dict) else ():
            check_numbers(inner, f"{place}: {quoted(key)}", depth + 1)
        for inner in value if isinstance(value, list | tuple) else ():
            check_numbers(inner, place, depth + 1)


def _short(value: float) -> str:
    """The number in few digits: an int may have hundreds of them, more than a float can hold."""
    try:
        return f"{value:g}"
    except OverflowError:
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else str(value)


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
