"""Activation: whether a user's own module ends in a sigmoid or softmax, and how it gives logits instead."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pthserve.files.stated_task import Hint, TaskName

_ACTIVATIONS = {"sigmoid": "Sigmoid", "sigmoid_": "Sigmoid", "_softmax": "Softmax", "softmax": "Softmax"}
"""What an operator is called that makes probabilities of logits."""
_VIEWS = {"view", "_unsafe_view", "squeeze", "reshape", "flatten", "detach", "alias", "clone", "_to_copy"}
"""Operators that change no value."""
_CLEAR = 1e-7
"""No probability is taken for nearer to 0 or 1 than this."""


def without_activation(
    module: nn.Module, channels: int, crop: tuple[int, int]
) -> tuple[nn.Module, Hint | None]:
    """The module without the sigmoid or softmax that it ends in, and what that tells about the task.

    One that gives a number for each image gives (images, 1) then. One that fails on images of `crop` (height,
    width) pixels, or gives something else than a tensor, is left as it is.
    """
    trace = _Trace(module.eval())
    try:
        given = trace.run(torch.zeros(2, channels, *crop))
    except Exception:  # the user's code may raise anything; `outputs.probe` says what
        return module, None
    if not isinstance(given, Tensor) or given.ndim not in (1, 2):
        return module, None
    activation, outputs = trace.activation(given), given.shape[1] if given.ndim == 2 else 1
    hint = None
    if activation:
        task: TaskName = "multilabel" if outputs > 1 else "binary"
        hint = Hint(
            "classification" if activation == "Softmax" else task, f"its last operation is a {activation}"
        )
        module = trace.without(activation)
    if given.ndim == 1:
        module = nn.Sequential(module, _Column())
    return module.eval(), hint


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
