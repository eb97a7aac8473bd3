"""Grad-CAM: where in an image a class is, by the gradient at a module's last feature map."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn


class GradCam:
    """Selvaraju et al. (2017), "Grad-CAM", equations 1 and 2, without the final ReLU.

    module: in eval mode; it is left as it is, and its parameters are shared, not copied. Its last feature map
    is found as it runs: the last output with rows and columns, unless tokens, (n, tokens, channels), follow.
    """

    def __init__(self, module: nn.Module) -> None:
        shared: dict[int, Any] = {
            id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())
        }
        self._module = copy.deepcopy(module, shared)
        self._last: Tensor | None = None
        for part in self._module.modules():
            part.register_forward_hook(self._keep)

    def __call__(self, images: Tensor, class_index: int) -> Tensor | None:
        """The map of one normalised image, (1, channels, height, width): float32 (rows, columns), or None."""
        with torch.enable_grad():
            logits = self._module(images.requires_grad_())
            features, self._last = self._last, None
            if (
                features is None
                or features.ndim != 4
                or not (features.requires_grad and logits.requires_grad)
            ):
                return None
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                logits[0, class_index], features, allow_unused=True
            )
            gradient = gradients[0]
        if gradient is None:  # the logits are of something else
            return None
        weights = gradient.mean((2, 3), keepdim=True)
        return (weights * features.detach()).sum(1)[0].float()

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output[0, 0].numel() > 1:
            self._last = output
