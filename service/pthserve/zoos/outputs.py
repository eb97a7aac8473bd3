"""Outputs: what a user's own module gives, by one forward pass, and how it becomes logits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pthserve.errors import ArchitectureError
from pthserve.files.stated_task import Hint

SIZES = (224, 32, 384)
"""Sides of the square images that are tried, in pixels; a module may take one alone."""
_ACTIVATIONS = {"sigmoid": "Sigmoid", "sigmoid_": "Sigmoid", "_softmax": "Softmax", "softmax": "Softmax"}
"""What an operator is called that makes probabilities of logits."""
_VIEWS = {"view", "_unsafe_view", "squeeze", "reshape", "flatten", "detach", "alias", "clone", "_to_copy"}
"""Operators that change no value."""
_CLEAR = 1e-7
"""No probability is taken for nearer to 0 or 1 than this."""


class Seen(NamedTuple):
    """A module whose outputs are (images, outputs), and logits where they were probabilities.

    hint: what its last operation tells about the task.
    """

    module: nn.Module
    outputs: int
    hint: Hint | None


def seen(module: nn.Module, channels: int, name: str) -> Seen | None:
    """What `module`, in eval mode, gives for images of so many channels; None where no size in SIZES fits it.

    name: of the module, for messages.

    Raises:
        ArchitectureError: it gives something else than a number or a vector for each image.
    """
    for size in SIZES:
        trace = _Trace(module)
        try:
            given = trace.run(torch.zeros(2, channels, size, size))
        except Exception:  # noqa: S112 - the user's code may raise anything, as PyTorch does for another size
            continue
        break
    else:
        return None
    if not isinstance(given, Tensor) or given.ndim > 2 or len(given) != 2:
        shape = (
            f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        )
        raise ArchitectureError(
            f"{name} gives {shape} for two images, and must give a tensor of (images, outputs); return that "
            "in its `forward`"
        )
    outputs = given.shape[1] if given.ndim == 2 else 1
    activation = trace.activation(given)
    hint = None
    if activation == "Sigmoid":
        hint = Hint("binary" if outputs == 1 else "multilabel", "its last operation is a Sigmoid")
    elif activation == "Softmax":
        hint = Hint("classification", "its last operation is a Softmax")
    if activation:
        module = trace.without(activation)
    if given.ndim == 1:
        module = nn.Sequential(module, _Column())
    return Seen(module.eval(), outputs, hint)


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One forward pass, and which operator and which submodule made each tensor."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module = module
        self._made: dict[int, str] = {}
        self._calls: list[tuple[str, nn.Module, Tensor]] = []
        self._tensors: list[Tensor] = []  # a tensor that is freed would lend its address to another

    def run(self, images: Tensor) -> Any:
        hooks = [
            part.register_forward_hook(self._called(name))
            for name, part in self._module.named_modules(remove_duplicate=False)
            if isinstance(part, nn.Sigmoid | nn.Softmax)
        ]
        try:
            with torch.no_grad(), self:
                return self._module(images)
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__
        if isinstance(made, Tensor):
            source = args[0] if args and isinstance(args[0], Tensor) else None
            if operator in _VIEWS and source is not None:
                operator = self._made.get(source.data_ptr(), operator)
            self._made[made.data_ptr()] = operator
            self._tensors.append(made)
        return made

    def activation(self, given: Tensor) -> str:
        """The activation that made the module's outputs; "" where it was another operator."""
        return _ACTIVATIONS.get(self._made.get(given.data_ptr(), ""), "")

    def without(self, activation: str) -> nn.Module:
        """The module without its last activation, or with the inverse behind where it is no submodule."""
        if self._calls:
            name, part, made = self._calls[-1]
            once = sum(other is part for _, other, _ in self._calls) == 1
            if name and once and made.data_ptr() == self._tensors[-1].data_ptr():
                self._module.set_submodule(name, nn.Identity())
                return self._module
        return nn.Sequential(self._module, _Logit() if activation == "Sigmoid" else _Log())

    def _called(self, name: str) -> Any:
        def hook(part: nn.Module, _: Any, made: Any) -> None:
            self._calls.append((name, part, made))

        return hook


class _Column(nn.Module):
    """A number for each image, as (images, 1)."""

    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1)


class _Logit(nn.Module):
    """The inverse of a sigmoid."""

    def forward(self, probabilities: Tensor) -> Tensor:
        clear = probabilities.clamp(_CLEAR, 1 - _CLEAR)
        return clear.log() - (1 - clear).log()


class _Log(nn.Module):
    """An inverse of a softmax."""

    def forward(self, probabilities: Tensor) -> Tensor:
        return probabilities.clamp_min(_CLEAR**2).log()
