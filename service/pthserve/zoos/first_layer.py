"""First layer: the convolution on the image, which people replace for grey images, or for small ones.

Its weights tell channels, kernel and bias. Stride and padding leave no trace.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from pthserve.zoos.base import Choice, Option
from pthserve.zoos.layout import Shape, words

Pair = tuple[int, int]

_TRANSPARENT = (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU)
"""What may stand between the convolution and its pooling."""


class FirstLayer:
    """The first convolution of `module`, and the max pooling right behind it where there is one."""

    @staticmethod
    def exists(module: nn.Module) -> bool:
        """Whether the module has a convolution."""
        return any(isinstance(layer, nn.Conv2d) for layer in module.modules())

    def __init__(self, module: nn.Module) -> None:
        """module: has a convolution."""
        leaves = [(path, layer) for path, layer in module.named_modules() if not any(layer.children())]
        start = next(number for number, (_, layer) in enumerate(leaves) if isinstance(layer, nn.Conv2d))
        self._module = module
        self.path, layer = leaves[start]
        self._conv = cast("nn.Conv2d", layer)
        behind = (leaf for leaf in leaves[start + 1 :] if not isinstance(leaf[1], _TRANSPARENT))
        following = next(behind, None)
        self._pool = following if following and isinstance(following[1], nn.MaxPool2d) else None

    def fit(self, weight: Shape, *, bias: bool) -> Choice | None:
        """Give the layer a weight of this shape, and a bias or none, on the meta device.

        Returns what had to be assumed, where the layer differs from the architecture's.
        """
        old, kernel = self._conv, cast("Pair", weight[2:])
        if tuple(old.weight.shape) == weight and (old.bias is not None) == bias:
            return None
        if old.groups != 1 or len(weight) != len(old.weight.shape):
            return None
        new = nn.Conv2d(weight[1], weight[0], kernel, bias=bias, padding_mode=old.padding_mode, device="meta")
        new.stride, new.padding = old.stride, old.padding
        self._module.set_submodule(self.path, new)
        self._conv = new
        if kernel == old.kernel_size == old.stride:  # patches, which lie side by side
            return None
        options = [self._option(**values) for values in self._candidates(old, kernel)]
        options[0].apply()
        return Choice("first layer", tuple({option.setting: option for option in options}.values()))

    def state(self, stated: Mapping[str, Any]) -> Option:
        """What the card states, and the rest as it is; it is applied."""
        values = {
            "stride": self._conv.stride,
            "padding": self._conv.padding,
            **{name: (value, value) for name, value in stated.items() if name in ("stride", "padding")},
            "pool": stated.get("pool", True),
        }
        option = self._option(**values)
        option.apply()
        return option

    def _candidates(self, old: nn.Conv2d, kernel: Pair) -> Iterator[dict[str, Any]]:
        """What the layer may have been made with, the likeliest first; old: the architecture's own."""
        stride, padding = old.stride, old.padding
        half: Pair = (kernel[0] // 2, kernel[1] // 2)
        small = kernel < old.kernel_size
        if small:  # as networks for images of 32 pixels begin
            yield {"stride": (1, 1), "padding": half, "pool": False}
            yield {"stride": (1, 1), "padding": half, "pool": True}
            yield {"stride": (1, 1), "padding": (0, 0), "pool": False}
        yield {"stride": stride, "padding": padding if kernel == old.kernel_size else half, "pool": True}
        yield {"stride": stride, "padding": padding, "pool": True}
        yield {"stride": (1, 1), "padding": (0, 0), "pool": True}  # `nn.Conv2d` with what it must be given
        yield {"stride": (1, 1), "padding": padding, "pool": True}
        yield {"stride": stride, "padding": (0, 0), "pool": True}

    def _option(self, stride: Pair, padding: Pair, pool: bool) -> Option:
        conv, module, pooling = self._conv, self._module, self._pool

        def apply() -> None:
            conv.stride, conv.padding = stride, padding
            if pooling:
                module.set_submodule(pooling[0], pooling[1] if pool else nn.Identity())

        without = pooling is not None and not pool
        return Option(
            f"{conv.in_channels} channel{'s' * (conv.in_channels > 1)}, kernel {words(conv.kernel_size)}, "
            f"stride {stride[0]}, padding {padding[0]}" + ", without the max pooling behind it" * without,
            f"first_layer: {{stride: {stride[0]}, padding: {padding[0]}{', pool: false' * without}}}",
            apply,
        )
