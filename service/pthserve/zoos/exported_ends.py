"""The ends of an exported model: what its input tells of an image, and which of its outputs counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.files.stated_task import Hint
from pthserve.images.spec import Spec
from pthserve.text import quoted
from pthserve.zoos.base import DEFAULT_SIZE
from pthserve.zoos.layout import some

LOGITS = "logits"
"""The name of the output that counts where there are several."""
_RESIZE = 256 / 224

Form = tuple[int | None, ...]
"""A shape; None where the size is any."""


def chosen(names: Sequence[str], forms: Sequence[Form], asked: object, file: str) -> int:
    """Which output counts: the one that is asked for, `logits`, or the only one with a row for each image."""
    if asked is not None:
        if asked not in names:
            raise ArchitectureError(
                f"{file}: has no output {quoted(repr(asked))}; its outputs are {some(names, 10)}"
            )
        return names.index(str(asked))
    if len(names) == 1:
        return 0
    if LOGITS in names:
        return names.index(LOGITS)
    rows = [number for number, form in enumerate(forms) if len(form) == 2]
    if len(rows) != 1:
        raise ArchitectureError(
            f"{file}: has {len(names)} outputs ({some(names, 10)}); say which to serve in model.yaml: "
            f"`kwargs: {{output: {names[rows[0]] if rows else names[0]}}}`"
        )
    return rows[0]


def told(kind: str, activation: str, alone: bool) -> tuple[Inferred, ...]:
    """What was found out about an exported model: the architecture first."""
    pace = (
        ", exported for a fixed number of images, which it computes one after the other; export it with a "
        "dynamic batch to have several computed at once"
    )
    found = [Inferred("architecture", kind + pace * alone, Origin.FILE)]
    if activation:
        value = f"the model ends in a {activation}, which is applied to its logits here"
        found.append(Inferred("activation", value, Origin.FILE))
    return tuple(found)


def hint(activation: str, outputs: int) -> Hint | None:
    """What the activation that the model ended in says about the task; None where it ended in none."""
    reason = f"the exported model ends in a {activation}"
    match activation:
        case "softmax":
            return Hint("classification", reason)
        case "sigmoid":
            return Hint("multilabel" if outputs > 1 else "binary", reason)
    return None


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input that takes an image. height, width: None where any is taken."""

    channels: int
    height: int | None
    width: int | None
    channels_last: bool

    @classmethod
    def of(cls, form: Form, file: str) -> "ImageInput":
        """The image that an input of this shape takes; raises ArchitectureError where it takes none."""
        if len(form) == 4:
            _, first, middle, last = form
            if first in (1, 3):
                return cls(first, middle, last, channels_last=False)
            if last in (1, 3):
                return cls(last, first, middle, channels_last=True)
        words = " x ".join("any" if side is None else str(side) for side in form) or "any"
        raise ArchitectureError(
            f"{file}: its input has the shape {words}; an image is (n, channels, height, width) or (n, "
            "height, width, channels), with 1 (grey) or 3 (RGB) channels that are fixed in the file"
        )

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(height, width), where the file says both."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def size(self, stated: Spec | None, file: str, usual: int = DEFAULT_SIZE) -> tuple[int, int]:
        """(height, width) of the images to make; stated: the card's preprocessing; usual: where nothing says.

        Raises:
            ArchitectureError: the card's size is another than the file's.
        """
        if stated is None or stated.assumed:
            return self.height or usual, self.width or usual
        wanted = (self.height or stated.crop[0], self.width or stated.crop[1])
        if wanted != stated.crop:
            raise ArchitectureError(
                f"{file}: takes images of {wanted[0]} x {wanted[1]} pixels (height x width), and the card's "
                f"preprocessing crops to {stated.crop[0]} x {stated.crop[1]}"
            )
        return wanted

    def preprocessing(
        self, stated: Spec | None, size: tuple[int, int], scale: tuple[float, float] | None, *, whole: bool
    ) -> tuple[Spec, Inferred]:
        """The preprocessing where the card states none, and what that rests on.

        Args:
            scale: the factor and offset that the model applies to its input first.
            whole: whether the input takes whole numbers, 0 to 255.
        """
        resize = tuple(round(side * _RESIZE) for side in size)
        spec = Spec(
            resize=resize[0] if size[0] == size[1] else resize,  # type: ignore[arg-type]
            crop=size,
            assumed=True,
        )
        if self.channels == 1:
            mean, std = (round(sum(values) / 3, 3) for values in (spec.mean, spec.std))
            spec = replace(spec, mean=(mean,), std=(std,))
        if whole and stated is not None and (set(stated.mean), set(stated.std)) != ({0.0}, {1.0}):
            raise ArchitectureError(
                "the model expects whole numbers from 0 to 255, so it normalises them itself; state "
                f"`mean: {[0] * self.channels}, std: {[1] * self.channels}` in the card's preprocessing"
            )
        plain = replace(spec, mean=(0.0,) * self.channels, std=(1.0,) * self.channels)
        reason = "the mean and standard deviation of ImageNet; nothing in the file states them"
        if whole:
            spec, reason = plain, "the model expects whole numbers from 0 to 255"
        elif scale is not None and scale[0] > 1.5:
            spec, reason = plain, "the model normalises values of 0 to 1 itself"
        elif scale is not None and scale[0] < 0.05:
            spec = replace(plain, std=(1 / 255,) * self.channels)
            reason = "the model normalises values of 0 to 255 itself"
        sizes = "the size that the file fixes" if self.fixed else "a size that nothing states"
        inferred = Inferred(
            "preprocessing",
            f"{spec.words()} ({sizes}), {reason}",
            Origin.ASSUMED,
            f"preprocessing: {spec.to_card()}",
        )
        return spec, inferred
