"""The protocol of a zoo: where architectures come from. A new zoo is one module that implements it."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.files.stated_task import Hint, StatedTask
from pthserve.images.spec import Spec
from pthserve.tasks.base import Task
from pthserve.zoos.layout import Shape, some

if TYPE_CHECKING:  # an ONNX file is served without torch
    from torch import Tensor, nn

DEFAULT_SIZE = 224
"""Side of the square image in pixels, where an architecture has no other."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a zoo makes an architecture from.

    state_dict: name to CPU tensor, names as in the file; empty where the file has none, as an ONNX graph.
    architecture: what the card or an option names, if anything; kwargs: its arguments.
    first_layer, head: what the card states of them, as `card_fields.FirstLayer` and `Head` have it.
    spec: the card's preprocessing, where it states one.
    path: the weights file, beside which others may lie; None where there is no file.
    format, content, beside: of an exported model, as in `files.weights.Weights`.
    metadata: plain values that the checkpoint holds beside its tensors.
    allowed: modules whose code may be imported and called.
    task, labels: what the card states of them.
    """

    state_dict: "Mapping[str, Tensor]"
    architecture: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    first_layer: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    spec: Spec | None = None
    path: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    allowed: Collection[str] = ()
    format: str = ""
    content: IO[bytes] | None = None
    beside: Mapping[str, IO[bytes]] = field(default_factory=dict)
    task: StatedTask = field(default_factory=StatedTask)
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A value that a part of a module may have been trained with.

    value, setting: as in `Inferred`. apply: gives the part this value.
    """

    value: str
    setting: str
    apply: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What the file does not tell of `subject`: one of `options`. The first was assumed, and is applied."""

    subject: str
    options: tuple[Option, ...]

    @property
    def inferred(self) -> Inferred:
        """The assumption."""
        return Inferred(self.subject, self.options[0].value, Origin.ASSUMED, self.options[0].setting)


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """A module with its weights, float32, in eval mode, and how it was found.

    module: None where there is only a graph, as of an ONNX file.
    graph: OpenVINO's, where the zoo has made it already: float32 (n, channels, height, width), normalised, to
    float32 (n, outputs).
    name: the zoo's, such as `resnet50` or `package.module:callable`.
    num_classes: how many numbers it gives for an image.
    prefix: what stood before each name in the file, with its dot. parameters: how many.
    input_size: side of the square image in pixels. channels: 1 or 3 of them.
    inferred: what was found out about it: the architecture first. spec: the preprocessing that the
    architecture was trained with by default, None where it has none. ignored: names in the file that no
    inference uses. hint: what the file tells about the task, where it does. task_hint: why its numbers may be
    for another task than classification, in words; "" where nothing says so.
    choices: what was assumed of `module`, and might have been otherwise.
    graph: of an exported model that has no module. preprocessing: what `spec` rests on, where it is not the
    architecture's default alone: it counts as it is. labels: one a class, where a file beside the weights
    names them. task: the only one that it has, where it has only one, as a detector. usual_labels: of the
    library's own weights, where they have as many classes. ends: the inputs and outputs of an exported
    model, in words.
    """

    name: str
    module: "nn.Module | None"
    num_classes: int
    prefix: str
    parameters: int
    input_size: int
    channels: int
    inferred: tuple[Inferred, ...]
    spec: Spec | None = None
    ignored: tuple[str, ...] = ()
    hint: Hint | None = None
    task_hint: str = ""
    choices: tuple[Choice, ...] = ()
    graph: Any = None
    preprocessing: Inferred | None = None
    labels: tuple[str, ...] | None = None
    task: Task | None = None
    usual_labels: tuple[str, ...] | None = None
    ends: tuple[str, ...] = ()


class Zoo(Protocol):
    """Where architectures come from."""

    def claims(self, source: Source) -> bool:
        """Whether this zoo is the one that builds `source`: by its name, or by the kind of its file."""

    def build(self, source: Source) -> Architecture:
        """The architecture that `source` fits, with its weights.

        Raises:
            ArchitectureError: none fits, or several that compute differently; the message says what to do.
        """


def shapes(state_dict: "Mapping[str, Tensor]") -> dict[str, Shape]:
    """Name to shape, without the counters that files of before PyTorch 0.4.1 lack."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }


def put(module: "nn.Module", names: Mapping[str, str], state_dict: "Mapping[str, Tensor]") -> None:
    """Put the state dict's tensors into the module, without a copy of what is float32 already.

    Args:
        names: the module's name of each tensor to the state dict's.

    Raises:
        ArchitectureError: a tensor is missing, has another shape, or is not of floating-point numbers.
    """
    import torch

    expected = module.state_dict()
    _check_dtypes(expected, names, state_dict)
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):
            mean = names.get(key.replace("num_batches_tracked", "running_mean"), key)
            tensors[key] = state_dict.get(
                mean.replace("running_mean", "num_batches_tracked"), torch.tensor(0)
            )
        elif key in names:
            tensors[key] = state_dict[names[key]].to(tensor.dtype)
    # Some modules read their version from here, and refuse to load without it.
    tensors._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ArchitectureError(f"the weights do not fit: {' '.join(str(error).split())[:500]}") from error


def _check_dtypes(
    expected: "Mapping[str, Tensor]", names: Mapping[str, str], state_dict: "Mapping[str, Tensor]"
) -> None:
    """Raise where the file has integers and the module computes with fractions: those are not weights."""
    strange = [
        f"{names[key]} ({str(state_dict[names[key]].dtype).removeprefix('torch.')})"
        for key, tensor in expected.items()
        if key in names and tensor.is_floating_point() and not state_dict[names[key]].is_floating_point()
    ]
    if strange:
        raise ArchitectureError(
            f"weights must be floating-point numbers, but these are not: {some(strange)}; save the state "
            "dict of the model as it was trained, not quantised"
        )


def described(name: str, module: "nn.Module", channels: int | None = None, **rest: Any) -> Architecture:
    """The architecture called `name`: `module` in eval mode; rest: the other fields.

    channels: of its images; by default, those of its first convolution.

    Raises:
        ArchitectureError: its images have neither 1 nor 3 channels.
    """
    module.eval()
    if channels is None:
        channels = first_channels(module)
    if channels not in (1, 3):
        raise ArchitectureError(
            f"{name} has {channels} input channels; an image has 1 (grey) or 3 (RGB). Your own code can "
            "compute the others from these: name it in model.yaml, `architecture: package.module:callable`"
        )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Architecture(name, module, parameters=parameters, channels=channels, **rest)


def first_channels(module: "nn.Module") -> int:
    """Channels that the first convolution takes, in order of registration; 3 where there is none."""
    from torch import nn

    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return next((layer.in_channels for layer in convolutions), 3)
