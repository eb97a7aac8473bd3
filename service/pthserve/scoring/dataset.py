"""Data set: the parts that a run writes, which of them exist, and the manifest that describes them.

The images of a run are divided into units, and units into parts of a fixed number of rows. A part is one
Parquet file, `part-UNIT-NUMBER-of-PARTS.parquet`. Its name alone determines which images are in it. So it
does not matter how often a process is killed, or whether two processes write the same part.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

import pthserve
from pthserve.errors import PthserveError
from pthserve.loading.model import Model
from pthserve.scoring.output import Output

MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files ignore names that begin with an underscore."""
FORMAT = 1
"""The version of the format of the manifest, and of the names of the parts."""

_PART = re.compile(r"part-(\d{5,})-(\d{5,})-of-(\d{5,})\.parquet")
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A part: number `number` of the `of` parts of a unit."""

    unit: int
    number: int
    of: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"part-{self.unit:05}-{self.number:05}-of-{self.of:05}.parquet"


class Counts(NamedTuple):
    """Number of rows, and of those with an error."""

    rows: int
    errors: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a data set was made from. It is equal for all runs that write to the data set.

    model: what determines the answers. listing: the images. options: what else determines the rows, by the
    name of the option.
    """

    model: Mapping[str, Any]
    listing: Mapping[str, Any]
    options: Mapping[str, Any]

    def to_json(self) -> bytes:
        """The content of the file."""
        values = {
            "format": FORMAT,
            "pthserve": pthserve.__version__,
            "model": self.model,
            "listing": self.listing,
            "options": self.options,
        }
        return json.dumps(values, indent=1).encode() + b"\n"

    def check(self, content: bytes, place: str) -> None:
        """Raise PthserveError if `content`, the manifest in `place`, belongs to another data set."""
        try:
            there = json.loads(content)
            form, model, listing, options = (
                there[name] for name in ("format", "model", "listing", "options")
            )
        except (ValueError, KeyError, TypeError):
            raise PthserveError(f"{place}/{MANIFEST}: cannot be read; {_WAY_OUT}") from None
        if form != FORMAT:
            raise PthserveError(f"{place}: was written by another version of pthserve; {_WAY_OUT}")
        if model["fingerprint"] != self.model["fingerprint"]:
            raise PthserveError(
                f"{place}: holds results of another model: {model['name']} {model['version']}, digest "
                f"{model['digest'][:12]}, and not {self.model['name']} {self.model['version']}, "
                f"{self.model['digest'][:12]}; {_WAY_OUT}"
            )
        if listing["digest"] != self.listing["digest"]:
            raise PthserveError(
                f"{place}: holds results for other {self.listing['of']}: {listing['count']} there, "
                f"{self.listing['count']} in the sources now, or other names or another order; {_WAY_OUT}"
            )
        ours = json.loads(json.dumps(dict(self.options)))
        for name in [*ours, *options]:
            if ours.get(name) != options.get(name):
                raise PthserveError(
                    f"{place}: was begun with {name} = {options.get(name)}, and now it is {ours.get(name)}; "
                    f"give the same value again. Otherwise, {_WAY_OUT}"
                )


_WAY_OUT = "name another folder, or discard these results with --restart"


def described(model: Model) -> dict[str, Any]:
    """Return what a manifest states about a model. The fingerprint covers all that determines answers."""
    deciding = {
        "digest": model.digest,
        "architecture": model.architecture,
        "labels": model.labels,
        "spec": model.spec.to_dict(),
        "task": model.task.name,
        "parameters": model.task.parameters(),
    }
    text = json.dumps(deciding, sort_keys=True, default=str)
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "architecture": model.architecture,
        "task": {"name": model.task.name, **model.task.parameters()},
        "labels": list(model.labels),
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
    }


def agree(output: Output, manifest: Manifest, place: str, *, restart: bool) -> None:
    """Write `manifest` if the data set has none yet; otherwise check that it has the same one.

    Args:
        restart: Whether to discard existing results first.

    Raises:
        PthserveError: The data set was made from something else.
    """
    names = output.names()
    if restart:
        for name in [MANIFEST, *filter(_PART.fullmatch, names)]:
            output.remove(name)
        output.tidy("")
    elif (there := output.read(MANIFEST)) is not None:
        manifest.check(there, place)
        return
    elif any(name.endswith(".parquet") for name in names):
        raise PthserveError(f"{place}: holds Parquet files that are not parts of a run; name another folder")
    with output.writing(MANIFEST) as path:
        path.write_bytes(manifest.to_json())
    # If shards with different sources begin at the same time, all but one fail here.
    manifest.check(output.read(MANIFEST) or b"", place)


def there(output: Output) -> dict[int, dict[int, int]]:
    """Return the existing parts: by unit and number of the part, how many parts the unit has."""
    present: dict[int, dict[int, int]] = {}
    for name in output.names():
        if match := _PART.fullmatch(name):
            unit, number, of = map(int, match.groups())
            present.setdefault(unit, {})[number] = of
    return present


def counted(output: Output, part: Part) -> Counts | None:
    """Return the counts of an existing part; None if it is damaged and must be written again."""
    try:
        with output.open(part.name) as file:
            meta = pq.ParquetFile(file).metadata
    except (pa.ArrowException, OSError) as error:
        _log.warning("%s is damaged, and is written again: %s", part.name, error)
        return None
    at = next(n for n in range(meta.num_columns) if meta.schema.column(n).path == "error")
    missing = 0
    for group in range(meta.num_row_groups):
        missing += meta.row_group(group).column(at).statistics.null_count
    return Counts(meta.num_rows, meta.num_rows - missing)


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a part, batch by batch."""
    # A dictionary of values that are all different costs as much time as all else that is done with them.
    repeated = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "key"]
    with _writing(path):
        writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated)
    try:
        for batch in batches:
            with _writing(path):
                writer.write_batch(batch)
    finally:
        with _writing(path):
            writer.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PthserveError(
            f"{path.parent}: the results cannot be written here: {error.strerror or error}"
        ) from error


def complete(present: Mapping[int, Mapping[int, int]], units: Sequence[int]) -> bool:
    """Return whether all parts of `units` exist."""
    return all(unit in present and len(present[unit]) == next(iter(present[unit].values())) for unit in units)
