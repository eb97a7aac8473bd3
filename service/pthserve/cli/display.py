"""Display: progress on a terminal, and tables of results."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from pthserve.addresses import shown
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from rich.table import Table

    from pthserve.loading.model import Model
    from pthserve.tasks.base import Row

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""
LARGE = 64 * 2**20
"""Bytes; a smaller file is read before anybody could see how far it is."""


def show(table: "Table") -> None:
    """Print `table` to the standard output; square brackets in a name are no markup."""
    from rich.console import Console

    Console(markup=False, highlight=False).print(table)


def show_notes(model: "Model") -> None:
    """Print what was inferred about `model` and is not certain to the standard error."""
    for inferred in model.inferred:
        if inferred.uncertain:
            click.echo(f"Note: {quoted(str(inferred), MESSAGE)}", err=True)


@contextmanager
def reading(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A callback for the bytes that are there and the bytes in all; it shows them on a terminal, if many."""
    if not sys.stderr.isatty():  # a service has none, and no time to import what draws
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(quoted(shown(what)), visible=False)

        def update(there: int, total: int | None) -> None:
            bars.update(bar, completed=there, total=total, visible=total is None or total >= LARGE)

        yield update


@contextmanager
def stages(what: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback for what is being done, and the bytes done and in all (0 for none); None without a terminal.

    It shows them on the terminal, while the block runs.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, markup=False), transient=True) as bars:
        bar = bars.add_task(quoted(what), total=None)

        def update(stage: str, done: int, total: int) -> None:
            bars.update(bar, description=f"{quoted(what)}: {stage}", completed=done, total=total or None)

        yield update


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, float | None, int], None]]:
    """A callback for the images done and in all (None: unknown), and the errors among them.

    It shows them with the rate and the time left: as a bar on a terminal, else as a line every EVERY seconds.
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[errors]}"),
    )
    with Progress(*columns, console=Console(stderr=True, markup=False)) as bars:
        bar = bars.add_task(quoted(shown(what)), total=None, rate="", errors="")
        pace = _Pace()

        def update(done: int, total: float | None, errors: int) -> None:
            bars.update(
                bar,
                completed=done,
                total=round(total) if total is not None else None,
                rate=f"{pace(done):,.0f}/s",
                errors=f"{errors:,} errors" if errors else "",
            )

        yield update


class _Pace:
    """Images per second since the first call, which counts those of earlier runs."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        began, before = self._first
        return (done - before) / (now - began) if now > began else 0.0


class _Lines:
    """Writes a line to the standard error every EVERY seconds, and none for what takes less."""

    def __init__(self) -> None:
        self._pace = _Pace()
        self._last = time.monotonic()

    def __call__(self, done: int, total: float | None, errors: int) -> None:
        rate = self._pace(done)
        if time.monotonic() < self._last + EVERY:
            return
        self._last = time.monotonic()
        text = f"{done:,} images"
        if total is not None:
            text = f"{done:,} of {total:,.0f} images"
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
            text += f" ({100 * done / max(total, 1):.0f} %), {rate:,.0f}/s{left}"
        print(f"{text}, {errors:,} errors", file=sys.stderr, flush=True)  # noqa: T201


def predictions(rows: "Sequence[tuple[str, Sequence[Row]]]") -> "Table":
    """A table with bars; rows: an image, and the lines of its answer."""
    from rich.bar import Bar
    from rich.table import Table

    bars = any(row.bar is not None for _, answer in rows for row in answer)
    table = (
        Table("image", "class", "", "probability", box=None) if bars else Table("image", "", "", "", box=None)
    )
    table.columns[0].overflow = "fold"
    if bars:
        table.columns[3].justify = "right"
    for image, answer in rows:
        for number, row in enumerate(answer):
            table.add_row(
                "" if number else quoted(image, MESSAGE),
                quoted(row.name),
                "" if row.bar is None else Bar(1, 0, row.bar, width=20),
                quoted(row.text),
            )
    return table
