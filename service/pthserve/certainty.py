"""Certainty: what was inferred about a model, what that rests on, and which line of a card settles it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """What a value rests on, the surest first."""

    CARD = "card"
    """The model card or an option states it."""
    FILE = "file"
    """The checkpoint, or a file beside it, states it, or its names and shapes leave no other choice."""
    GOLDEN = "golden"
    """Only this value gives the answers of the golden images."""
    DEFAULT = "default"
    """The architecture's default, which most models of it were trained with."""
    ASSUMED = "assumed"
    """Nothing states it: the most common value."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """One value that pthserve found out about a model.

    subject: what it is about: `architecture`, `first layer`, `head`, `activation`, `preprocessing`, `task`,
    `labels`, `weights` or `precision`. value: what was found, in words, such as "ReLU between the linear
    layers of the head".
    origin: what it rests on. setting: the line of `model.yaml` that states it, such as
    "preprocessing: {resize: 320, crop: 300, interpolation: bicubic}"; "" where no line can.
    """

    subject: str
    value: str
    origin: Origin
    setting: str = ""

    @property
    def uncertain(self) -> bool:
        """Whether the answers may be wrong because of it, so that the user has to be told."""
        return self.origin in (Origin.DEFAULT, Origin.ASSUMED)

    def __str__(self) -> str:
        """One sentence for a log or a terminal."""
        advice = f"; state it in model.yaml, such as `{self.setting}`" if self.setting else ""
        return f"{self.subject}: {self.value} ({_WORDS[self.origin]}){advice if self.uncertain else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The value as plain values, ready for JSON."""
        return asdict(self)


_WORDS = {
    Origin.CARD: "stated by the model card",
    Origin.FILE: "from the file",
    Origin.GOLDEN: "settled by the golden images",
    Origin.DEFAULT: "the architecture's default",
    Origin.ASSUMED: "assumed",
}
