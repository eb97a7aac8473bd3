"""Transformers' image classifiers: built from a configuration as data, and given weights that were read.

A configuration is a mapping of a file's. Of it only what the class of the configuration knows is taken over,
and nothing that names code, kernels or other models; so nothing is imported, fetched or run for it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from pthserve.errors import ArchitectureError
from pthserve.text import quoted
from pthserve.zoos.bounded_build import BoundedBuild, check_numbers
from pthserve.zoos.layout import some

FILE = "config.json"
CALLS = 100_000
"""Most calls of PyTorch that it takes to build a module; a Swin of 24 blocks takes some 5,000."""
_LEFT_OUT = {
    *("_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype"),
    *("quantization_config", "attn_implementation", "_attn_implementation", "_commit_hash", "return_dict"),
    *(
        "output_attentions",
        "output_hidden_states",
        "id2label",
        "label2id",
        "problem_type",
        "gradient_checkpointing",
    ),
}
"""Fields that name code, kernels or files, that have no part in the answer, or that are read here."""
_CODE = ("auto_map", "quantization_config", "backbone", "use_timm_backbone", "use_pretrained_backbone")
"""Fields by which a configuration names code, kernels or other models."""


def choose(values: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Name of the model's class, its configuration, and the class; raises ArchitectureError."""
    kind = values["model_type"]
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if named := [key for key in _CODE if values.get(key)]:
        raise ArchitectureError(
            f"{FILE}: {named[0]}: names code or another model, which is not run or fetched; export the model "
            "with torch.export or to ONNX, and serve that"
        )
    if not isinstance(kind, str) or kind not in known:
        raise ArchitectureError(
            f"{FILE}: transformers has no image classifier of the model_type {quoted(repr(kind))}"
        )
    names: tuple[str, ...] = tuple(known[kind]) if isinstance(known[kind], tuple) else (str(known[kind]),)
    stated = [name for name in values.get("architectures") or names if name in names]
    if not stated:
        raise ArchitectureError(
            f"{FILE}: architectures: is {quoted(values.get('architectures'))}, and the image classifier of "
            f"{kind} is {some(names)}; save the model with its classifier"
        )
    config = _config(CONFIG_MAPPING[kind], values)
    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    options = classes if isinstance(classes, tuple | list) else (classes,)
    return stated[0], config, next(one for one in options if one.__name__ == stated[0])


def _config(made: Any, values: Mapping[str, Any]) -> Any:
    known = set(made().to_dict()) | set(getattr(made, "attribute_map", {}))
    kept = {key: value for key, value in values.items() if key in known - _LEFT_OUT}
    check_numbers(kept, FILE)
    labels = values.get("id2label")
    if isinstance(labels, Mapping):
        kept["num_labels"] = len(labels)
    elif "num_labels" in values:
        kept["num_labels"] = values["num_labels"]
    try:
        return made.from_dict(kept)
    except Exception as error:  # it checks few of its values, and fails on others as it may
        raise ArchitectureError(f"{FILE}: {made.__name__} cannot use it: {quoted(error)}") from error


def load(name: str, made: Any, config: Any, state_dict: "Mapping[str, Any]") -> Any:
    """The model with exactly these weights; raises ArchitectureError."""
    tensors = sum(tensor.numel() for tensor in state_dict.values())
    try:
        with torch.device("meta"), BoundedBuild(CALLS, "image classifier"):  # shapes without memory
            blank = made(config)
        wanted = sum(parameter.numel() for parameter in blank.parameters())
    except Exception as error:
        raise ArchitectureError(f"{FILE}: {name} cannot be built: {quoted(error, 300)}") from error
    if wanted > tensors:
        raise ArchitectureError(
            f"{FILE}: {name} has {wanted} parameters, and the weights {tensors}; "
            "they belong to different models"
        )
    try:
        model, report = made.from_pretrained(
            None,
            config=config,
            state_dict=dict(state_dict),
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="eager",
        )
    except Exception as error:
        raise ArchitectureError(
            f"the weights do not fit {name} of {FILE}: {quoted(' '.join(str(error).split()), 300)}"
        ) from error
    for kind, keys in (("are missing", "missing_keys"), ("have other shapes", "mismatched_keys")):
        if report[keys]:
            found = sorted(key if isinstance(key, str) else key[0] for key in report[keys])
            raise ArchitectureError(f"the weights do not fit {name} of {FILE}: {some(found)} {kind}")
    if report["unexpected_keys"]:
        raise ArchitectureError(
            f"the weights do not fit {name} of {FILE}: it has no place for "
            f"{some(sorted(report['unexpected_keys']))}"
        )
    return model.eval()


class Logits(nn.Module):
    """The logits of a model that answers with a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits
