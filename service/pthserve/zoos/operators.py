"""Operators: what a program of `torch.export` may call.

They compute tensors from tensors: those that PyTorch marks as its core, and some composed of these that
exporters write. None of them reads a file, leaves memory uninitialised, draws random numbers or runs another
function.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch

COMPOSED = frozenset(
    """
_assert_tensor_metadata _native_batch_norm_legit_no_training abs adaptive_avg_pool2d adaptive_max_pool2d
add_ addcdiv addcmul addmm alias alpha_dropout amax amin arange argmax avg_pool2d baddbmm batch_norm
bilinear bmm broadcast_to cat cdist ceil celu celu_ channel_shuffle chunk clamp clamp_ clamp_max
clamp_min clone col2im concat concatenate constant_pad_nd contiguous conv1d conv2d conv3d convolution
copy_ cos cumsum detach detach_ div_ divide dropout dropout_ einsum elu elu_ embedding eq erf exp expand
expand_as expm1 feature_dropout fill fill_ flatten flip floor floor_divide full full_like gather ge gelu
gelu_ glu grid_sampler_2d group_norm gt hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_
hardtanh hardtanh_ im2col index index_put index_put_ index_select instance_norm item layer_norm le
leaky_relu leaky_relu_ lerp lift_fresh_copy linalg_vector_norm linear linspace log log1p log_sigmoid
log_softmax logical_and logical_not logical_not_ lt masked_fill masked_fill_ matmul max max_pool2d
max_pool2d_with_indices maximum mean meshgrid min minimum mish mish_ mm moveaxis movedim mul_ multiply
narrow native_batch_norm native_group_norm native_layer_norm ne neg neg_ new_full new_ones new_zeros
norm numpy_T one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow pow_ prelu
reflection_pad2d relu relu6 relu6_ relu_ remainder repeat repeat_interleave reshape reshape_as rms_norm
roll round rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add select
select_scatter selu selu_ sigmoid sigmoid_ silu silu_ sin slice slice_scatter softmax softplus
softshrink split split_with_sizes sqrt square squeeze squeeze_ stack std sub_ subtract sum swapaxes
sym_size t tanh tanh_ threshold tile to topk transpose true_divide type_as unbind unflatten unfold
unsafe_chunk unsafe_split unsqueeze unsqueeze_ upsample_bicubic2d upsample_bilinear2d upsample_nearest2d
var var_mean view view_as where zeros zeros_like
""".split()  # noqa: SIM905, one a line would be a long page
)
"""Operators beside PyTorch's core ones."""
REFUSED = frozenset(
    """
rand randn randperm rand_like randn_like native_dropout bernoulli empty empty_strided empty_permuted
empty_like new_empty new_empty_strided resize nonzero
""".split()  # noqa: SIM905, one a line would be a long page
)
"""Core operators that draw random numbers, or give memory as it is, or as much as their values say."""
QUIET = frozenset(["dropout", "dropout_", "feature_dropout", "alpha_dropout", "scaled_dot_product_attention"])
"""Operators that draw random numbers in training alone; `program.call_of` sees to it that they do not."""


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of numbers, whose results stay below 2**63: repeated squares would fill the memory."""

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        result = function(*values)
        if type(result) is int and abs(result) >= 2**63:
            raise ValueError("a size is too large")
        return result

    return call


NUMBERS = {
    **{
        f"_operator.{name}": bounded(getattr(operator, name))
        for name in (
            "add",
            "sub",
            "mul",
            "floordiv",
            "mod",
            "neg",
            "truediv",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
        )
    },
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_int": torch.sym_int,
    "torch.sym_float": torch.sym_float,
    "torch.sym_not": torch.sym_not,
}
"""Functions of sizes."""


@functools.cache
def function(target: str) -> Any:
    """What a program means by `target`, as `torch.ops.aten.relu.default`; None where it may not call that."""
    if target in NUMBERS:
        return NUMBERS[target]
    parts = target.split(".")
    if parts[:3] != ["torch", "ops", "aten"] or len(parts) != 5:
        return None
    name, overload = parts[3:]
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload) or found.namespace != "aten":
        return None
    if name in QUIET:
        return found
    known = torch.Tag.core in found.tags or name in COMPOSED
    refused = torch.Tag.nondeterministic_seeded in found.tags or name.removesuffix("_") in REFUSED
    return found if known and not refused else None


def kind(target: str) -> str:
    """The operator's name in `target`; "" where it is a function of sizes."""
    parts = target.split(".")
    return parts[3] if len(parts) == 5 else ""
