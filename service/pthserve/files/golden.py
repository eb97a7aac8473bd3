"""Golden images: images whose right answers are known."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pthserve.errors import PackError
from pthserve.files import regular_files


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden image: its file, the class it must be given, and (where known) with what probability.

    sha256: of the file, where a packed model says so; None where any content counts.
    recorded: whether the answer is one that pthserve gave, and no evidence of what is right.
    """

    image: Path
    class_index: int
    probability: float | None = None
    sha256: str | None = field(default=None, compare=False)
    recorded: bool = field(default=False, compare=False)

    def read(self) -> bytes:
        """The file's bytes, within the bounds of `regular_files`.

        Raises OSError, and PackError where they are not those that were packed.
        """
        data = regular_files.read(self.image, regular_files.IMAGE)
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise PackError(f"{self.image}: was changed; copy the packed model again")
        return data
