"""Run: a model's answers for all images of the sources, as one data set, however often it is interrupted."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pthserve.addresses import is_address, shown
from pthserve.errors import PthserveError
from pthserve.loading.model import Model
from pthserve.scoring import dataset
from pthserve.scoring.archives import Archive, Files, Images
from pthserve.scoring.columns import Columns
from pthserve.scoring.dataset import Counts, Manifest, Part
from pthserve.scoring.listing import Listing, listed
from pthserve.scoring.output import Output, output
from pthserve.scoring.pipeline import Item, Pipeline, Scored
from pthserve.scoring.reading import Reader
from pthserve.scoring.request import Request
from pthserve.serving.memory import give_back
from pthserve.tasks.base import Selects

GROUP = 500
"""Number of rows that are collected in memory before they are written."""
FAR = 32
"""Number of files that are read at the same time over the network."""

Progress = Callable[[int, float | None, int], None]
"""Called with the number of images done and in all, or None where that is unknown, and of errors."""


@dataclass(slots=True)
class Summary:
    """How a run ended.

    Attributes:
        rows, errors: Numbers of this shard, including earlier runs.
        earlier: Number of rows that earlier runs had written.
        skipped: Number of files in the sources that are not images.
        example: The key and the error of an image that failed in this run.
        seconds: Duration of this run.
        complete: Whether the parts of all shards exist.
    """

    rows: int = 0
    errors: int = 0
    earlier: int = 0
    skipped: int = 0
    example: tuple[str, str] | None = None
    seconds: float = 0.0
    complete: bool = False


def score(model: Model, request: Request, progress: Progress) -> Summary:
    """Score the images of `request` that no earlier run has scored.

    Raises:
        PthserveError: The sources or the output cannot be used, or the output belongs to another run.
        EngineFailed: A forward pass failed.
    """
    began = time.monotonic()
    selected = _selection(model, request.query)
    here = [Path(one) for one in request.sources if not is_address(one)]
    folders = [one if one.is_dir() else one.parent for one in here]
    reader = Reader(folders, skip_unreachable=request.skip_unreachable)
    try:
        listing = listed(request.sources, request.column, reader)
        place = output(request.output)
        dataset.agree(
            place, _manifest(model, listing, request), shown(request.output), restart=request.restart
        )
        run = _Run(model, request, listing, reader, place, Columns(model, selected), progress)
        summary = run()
    finally:
        reader.close()
    summary.seconds = time.monotonic() - began
    return summary


def _selection(model: Model, query: Mapping[str, str]) -> Callable[[Any], Any]:
    task = model.task
    known = {one.name for one in task.query} if isinstance(task, Selects) else set()
    if unknown := [name for name in query if name not in known]:
        raise PthserveError(f"--{unknown[0]} is not for this model, which {model.does}")
    if not isinstance(task, Selects):
        return lambda answer: answer
    try:
        return task.selection(query)
    except ValueError as error:
        raise PthserveError(str(error)) from error


def _manifest(model: Model, listing: Listing, request: Request) -> Manifest:
    return Manifest(
        dataset.described(model),
        {
            "sources": [shown(one) for one in request.sources],
            "of": "archives" if listing.archives else "images",
            "count": len(listing.entries),
            "digest": listing.digest,
        },
        {
            "shards": request.shard.of,
            "part_rows": request.part_rows,
            "max_bytes": request.max_bytes,
            "max_pixels": model.options.max_pixels,
            "decode": model.options.decode,
            "engine": model.options.engine,
            "precision": model.options.precision,
            **request.query,
        },
    )


@dataclass(slots=True, eq=False)
class _Unit:
    """Images that are divided into parts together. missing: numbers of the parts to be written."""

    number: int
    images: Images
    parts: int
    missing: list[int]


class _Run:
    """One run; see `score`. The pipeline's threads create items, and the caller's thread consumes results."""

    def __init__(
        self,
        model: Model,
        request: Request,
        listing: Listing,
        reader: Reader,
        place: Output,
        columns: Columns,
        progress: Progress,
    ) -> None:
        self._model = model
        self._request = request
        self._listing = listing
        self._reader = reader
        self._output = place
        self._columns = columns
        self._progress = progress
        self._there = dataset.there(place)
        self._summary = Summary(skipped=listing.skipped)
        self._lock = threading.Lock()
        self._known = (0, 0)  # units, and the images in them
        self._opened_images: list[Images] = []
        index, count = request.shard
        if listing.archives:
            self._units: Sequence[int] = range(index, len(listing.entries), count)
            self._all: Sequence[int] = range(len(listing.entries))
        else:
            self._units, self._all = [index], range(count)

    def __call__(self) -> Summary:
        request = self._request
        far = any(map(is_address, request.sources)) or is_address(self._listing.entries[0].place)
        pipeline = Pipeline(
            self._model,
            self._columns.row,
            readers=FAR if far and not self._listing.archives else max(2, self._model.options.cpus),
            max_bytes=request.max_bytes,
            decode_memory=request.decode_memory,
        )
        beside = ThreadPoolExecutor(1, "archives")
        try:
            self._write(pipeline.run(self._items(beside)))
        finally:
            beside.shutdown(wait=False, cancel_futures=True)
            for images in self._opened_images:
                images.close()
        for unit in self._units:
            self._output.tidy(f"part-{unit:05}-")
        self._summary.complete = dataset.complete(dataset.there(self._output), self._all)
        return self._summary

    def _write(self, results: Iterator[Scored]) -> None:
        """Write the parts as their results arrive."""
        for first in results:
            unit, part = first.item.group
            with self._output.writing(part.name) as path:
                dataset.write(path, self._columns.schema, self._batches(first, results))
            give_back()
            if part.number == unit.missing[-1]:
                self._opened_images.remove(unit.images)
                unit.images.close()

    def _batches(self, first: Scored, results: Iterator[Scored]) -> Iterator[Any]:
        """The rows of the part that begins with `first`."""
        unit, part = first.item.group
        left = len(_rows(unit, part.number, self._request.part_rows))
        if not left:
            return
        group = [first]
        while True:
            left -= 1
            if not left or len(group) == GROUP:
                yield self._columns.batch(group)
                self._count(group)
                group = []
            if not left:
                return
            group.append(next(results))

    def _count(self, group: Sequence[Scored]) -> None:
        failed = [one for one in group if one.error is not None]
        summary = self._summary
        with self._lock:
            summary.rows += len(group)
            summary.errors += len(failed)
        if failed and summary.example is None:
            images, index, _ = failed[0].item
            assert images is not None
            summary.example = (images.key(index), failed[0].error or "")
        self._report()

    def _report(self) -> None:
        units, images = self._known
        total = images / units * len(self._units) if units else None
        self._progress(self._summary.rows, total, self._summary.errors)

    def _items(self, beside: ThreadPoolExecutor) -> Iterator[Item]:
        """The images of all parts that are missing, in order; the next archive is opened meanwhile."""
        opening = deque(beside.submit(self._opened, number) for number in self._units[:1])
        for position in range(len(self._units)):
            unit = opening.popleft().result()
            opening.extend(
                beside.submit(self._opened, number) for number in self._units[position + 1 : position + 2]
            )
            if unit is None:
                continue
            for number in unit.missing:
                part = Part(unit.number, number, unit.parts)
                rows = _rows(unit, number, self._request.part_rows)
                for index in rows:
                    yield Item(unit.images, index, (unit, part))
                if not rows:
                    yield Item(None, 0, (unit, part))

    def _opened(self, number: int) -> _Unit | None:
        """The unit of this number, or None if all its parts exist."""
        parts = self._there.get(number, {})
        whole = self._counted(number, parts)
        if parts and whole.keys() >= set(range(next(iter(parts.values())))):
            self._add(whole, sum(counts.rows for counts in whole.values()))
            return None
        images = self._images(number)
        self._opened_images.append(images)
        count = max(1, -(-len(images) // self._request.part_rows))
        if any(of != count for of in parts.values()):
            raise PthserveError(
                f"{images.key(0) if len(images) else number}: the archive has other images than when the run "
                "began; name another folder, or discard these results with --restart"
            )
        self._add(whole, len(images))
        missing = [one for one in range(count) if one not in whole]
        return _Unit(number, images, count, missing)

    def _counted(self, number: int, parts: Mapping[int, int]) -> dict[int, Counts]:
        """The existing parts that are not damaged. In an object store, each needs a request."""
        with ThreadPoolExecutor(FAR) as pool:
            counts = pool.map(
                lambda part: dataset.counted(self._output, Part(number, *part)), list(parts.items())
            )
            return {one: count for one, count in zip(parts, counts, strict=True) if count is not None}

    def _add(self, whole: Mapping[int, Counts], images: int) -> None:
        """Count the parts of earlier runs."""
        rows = sum(counts.rows for counts in whole.values())
        with self._lock:
            self._known = (self._known[0] + 1, self._known[1] + images)
            self._summary.earlier += rows
            self._summary.rows += rows
            self._summary.errors += sum(counts.errors for counts in whole.values())

    def _images(self, number: int) -> Images:
        entries = self._listing.entries
        if self._listing.archives:
            return Archive(entries[number], self._model.options.max_download)
        index, count = self._request.shard
        first, last = (len(entries) * one // count for one in (index, index + 1))
        return Files(entries[first:last], self._reader)


def _rows(unit: _Unit, number: int, part_rows: int) -> range:
    """The indices of the images of a part."""
    return range(number * part_rows, min(len(unit.images), (number + 1) * part_rows))
