"""The user's own function, `script.py:function`: it is run, and what it returns is checked."""

import contextlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.errors import PthserveError

RETURNS = (
    "return the tensor that your model gets, of shape (channels, height, width), or its probabilities or "
    "logits, of shape (classes,), or a tuple of both"
)
_MODULE = "pthserve_compared_script"
_SAME = 1e-3
"""Two calls with the same image may differ by this share of the largest value: libraries add in any order."""


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """What the user's function returned for one image, as float32.

    tensor: (channels, height, width), as the user's model gets it. scores: (classes,), probabilities or
    logits. At least one of them is there.
    """

    tensor: NDArray[np.float32] | None
    scores: NDArray[np.float32] | None


class UserFunction:
    """A function of the user's, which takes the path of an image file as text.

    name: as the user wrote it, `script.py:function`.

    The script runs in this process as `python script.py` would run it: its folder is the first that imports
    are looked for in. What it prints goes to standard error, so that the output of the command stays clean.

    Raises:
        PthserveError: there is no such file or function, or the script fails.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        file, colon, function = name.rpartition(":")
        path = Path(file)
        if not colon or path.suffix != ".py" or not function.isidentifier():
            raise PthserveError(
                f"{name}: write the script and the function in it, such as train.py:preprocess"
            )
        if not path.is_file():
            raise PthserveError(f"{file}: this script does not exist")
        self._path = path.resolve()
        found = getattr(self._module(), function, None)
        if not callable(found):
            raise PthserveError(f"{file}: has no function {function}")
        self._function: Callable[[str], Any] = found

    def __call__(self, image: Path) -> Returned:
        """What the function returns for the image file `image`.

        Raises:
            PthserveError: the function fails, or returns something that cannot be compared.
        """
        with contextlib.redirect_stdout(sys.stderr):
            try:
                value = self._function(str(image))
            except Exception as error:  # the user's code may raise anything
                raise self._failed(error, f" for {image}") from error
            try:
                return _returned(value)
            except ValueError as error:
                raise PthserveError(f"{self.name} {error}; {RETURNS}") from error

    def check_repeatable(self, image: Path, first: Returned) -> None:
        """Call the function a second time and raise PthserveError unless it returns the same again."""
        again = self(image)
        if not _same(first.tensor, again.tensor):
            raise PthserveError(
                f"{self.name} returns a different tensor each time for {image}: it augments images at "
                "random. Name the function that prepares images for validation"
            )
        if not _same(first.scores, again.scores):
            raise PthserveError(
                f"{self.name} returns different probabilities each time for {image}: call `.eval()` on "
                "your model, which turns dropout off"
            )

    def _module(self) -> Any:
        sys.path.insert(0, str(self._path.parent))
        spec = importlib.util.spec_from_file_location(_MODULE, self._path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_MODULE] = module  # dataclasses and pickle look their module up there
        with contextlib.redirect_stdout(sys.stderr):
            try:
                spec.loader.exec_module(module)
            except (Exception, SystemExit) as error:  # the user's code may raise anything
                raise self._failed(error) from error
        return module

    def _failed(self, error: BaseException, when: str = "") -> PthserveError:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == self._path
        ]
        if isinstance(error, SyntaxError) and error.filename == str(self._path):
            lines = [error.lineno]
        line = f" in line {lines[-1]}" if lines else ""
        return PthserveError(f"{self.name} failed{when}{line}: {type(error).__name__}: {error}")


def _returned(value: Any) -> Returned:
    """`value` as tensor and scores; raises ValueError, whose message goes on after the function's name."""
    parts = value if isinstance(value, tuple) else (value,)
    tensor = scores = None
    for part in parts:
        array = _array(part)
        if array.ndim in (2, 4) and array.shape[0] == 1:
            array = array[0]
        if array.ndim == 1 and len(array) > 0 and scores is None:
            scores = array
        elif array.ndim == 3 and array.shape[0] in (1, 3) and tensor is None:
            tensor = array
        else:
            hint = ""
            if array.ndim == 3 and array.shape[2] in (1, 3):
                hint = ", with the channels last (`.permute(2, 0, 1)` puts them first)"
            shapes = " and ".join(str(tuple(_array(one).shape)) for one in parts)
            raise ValueError(f"returns {'arrays' if len(parts) > 1 else 'an array'} of shape {shapes}{hint}")
    if tensor is None and scores is None:
        raise ValueError("returns nothing")
    return Returned(tensor, scores)


def _array(value: Any) -> NDArray[np.float32]:
    if value is None:
        raise ValueError("returns nothing")
    for step in ("detach", "cpu", "float"):  # a tensor of PyTorch, on any device and of any type
        value = getattr(value, step)() if hasattr(value, step) else value
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        kind = re.sub("^builtins.", "", f"{type(value).__module__}.{type(value).__qualname__}")
        raise ValueError(f"returns a {kind}") from None
    if not np.isfinite(array).all():
        raise ValueError("returns NaN or infinity")
    return array.reshape(1) if array.ndim == 0 else array


def _same(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.shape != other.shape:
        return False
    return bool(np.abs(one - other).max() <= _SAME * max(1.0, float(np.abs(one).max())))
