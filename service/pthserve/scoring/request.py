"""Request: what a run of batch scoring is to do, with the defaults of the command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pthserve.settings import Settings

MAX_BYTES: int = Settings.model_fields["max_body"].default
"""Default maximum size of an image file in bytes: that of a request's body."""
DECODE_MEMORY: int = Settings.model_fields["decode_memory"].default
"""Default maximum memory in bytes of all images that are being decoded."""
PART_ROWS = 2000
"""Default number of rows of a part: what a file holds, and what a kill may cost."""


class Shard(NamedTuple):
    """The share of one process: number `number`, from 0, of `of` shares."""

    number: int
    of: int


WHOLE = Shard(0, 1)


@dataclass(frozen=True, slots=True)
class Request:
    """What a run is to do.

    Attributes:
        sources: See `listing`.
        output: A folder, or the address of a key in an object store.
        column: See `listed`.
        shard: The share of this process.
        part_rows: Number of rows of a part.
        max_bytes: Maximum size of an image file.
        decode_memory: Maximum memory in bytes of all images that are being decoded.
        query: What of an answer is wanted; see `Selects`.
        skip_unreachable: See `Reader`.
        restart: Whether to discard the results that are in the output.
    """

    sources: Sequence[str]
    output: str
    column: str | None = None
    shard: Shard = WHOLE
    part_rows: int = PART_ROWS
    max_bytes: int = MAX_BYTES
    decode_memory: int = DECODE_MEMORY
    query: Mapping[str, str] = field(default_factory=dict)
    skip_unreachable: bool = False
    restart: bool = False
