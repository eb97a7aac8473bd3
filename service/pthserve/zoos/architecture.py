"""Architecture: a weights file to the module that it belongs to, by the zoo that claims it.

Nothing here imports torch unless the file's architecture needs it: an ONNX file is served without.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pthserve.errors import ArchitectureError
from pthserve.files.stated_task import StatedTask
from pthserve.images.spec import Spec
from pthserve.zoos.base import Architecture, Source, Zoo
from pthserve.zoos.exported import Exported
from pthserve.zoos.huggingface import HuggingFace
from pthserve.zoos.own import Own

if TYPE_CHECKING:
    from torch import Tensor, nn


def zoos() -> Iterator[Zoo]:
    """Every zoo. The first that claims a source builds it."""
    yield from (Exported(), Own(), HuggingFace())
    from pthserve.zoos.indexed import Indexed
    from pthserve.zoos.torchvision_detection import TorchvisionDetection
    from pthserve.zoos.torchvision_segmentation import TorchvisionSegmentation

    yield from (TorchvisionDetection(), TorchvisionSegmentation(), Indexed())


def build(
    state_dict: "Mapping[str, Tensor]",
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    allowed: Collection[str] = (),
    *,
    first_layer: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    spec: Spec | None = None,
    path: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    format: str = "",  # noqa: A002, the field's name
    content: IO[bytes] | None = None,
    beside: Mapping[str, IO[bytes]] | None = None,
    task: StatedTask | None = None,
    labels: tuple[str, ...] | None = None,
) -> Architecture:
    """The module that `state_dict` fits, with its weights. The arguments are the fields of `Source`.

    Raises:
        ArchitectureError: none fits; the message names what differs. Or `first_layer` or `head` state what
            the architecture has no place for.
    """
    source = Source(
        state_dict,
        name,
        kwargs or {},
        first_layer or {},
        head or {},
        spec,
        path,
        metadata or {},
        allowed,
        format,
        content,
        beside or {},
        task or StatedTask(),
        labels,
    )
    built = next(zoo for zoo in zoos() if zoo.claims(source)).build(source)
    subjects = {inferred.subject for inferred in built.inferred}
    if source.task.graph is not None and not format:
        raise ArchitectureError(
            "`outputs` says what the outputs of an exported graph are, and this file has none; leave it out"
        )
    if first_layer and "first layer" not in subjects:
        raise ArchitectureError(f"{built.name} has no first layer that `first_layer` could change")
    if head and "activation" not in subjects:
        raise ArchitectureError(
            f"`head` states an activation, and the head of this {built.name} has no two linear layers with a "
            "gap between them"
        )
    return built


def flops(module: "nn.Module", input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of a forward pass on a batch of `input_shape`; a multiply and an add are two.

    `torch.utils.flop_counter` counts those of matrix products and convolutions, while zeros go through.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(input_shape))
    return int(counter.get_total_flops())
