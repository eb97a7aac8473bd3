"""Display: progress on a terminal, and tables of results."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pthserve.addresses import shown
from pthserve.text import MESSAGE, quoted

if TYPE_CHECKING:
    from rich.table import Table

    from pthserve.tasks.base import Row

LARGE = 64 * 2**20
"""Bytes; a smaller file is read before anybody could see how far it is."""


def show(table: "Table") -> None:
    """Print `table` to the standard output; square brackets in a name are no markup."""
    from rich.console import Console

    Console(markup=False, highlight=False).print(table)


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
