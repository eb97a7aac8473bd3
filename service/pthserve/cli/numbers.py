"""Numbers: types of options that click does not have."""

import math
import re
from typing import Any

import rich_click as click

_UNITS = {"ms": 0.001, "s": 1.0}


class Number(click.FloatRange):
    """A finite number within bounds; click's own type accepts `nan`, which is not outside of any bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Duration(click.ParamType[float]):
    """A duration with its unit, such as 50ms or 0.2s, in seconds; up to an hour."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,6})?)\s*(ms|s)", str(value))
        seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
        if not 0 < seconds <= 3600:
            self.fail(f"{value!r} must be a duration with its unit, such as 50ms or 0.2s.", param, ctx)
        return seconds
