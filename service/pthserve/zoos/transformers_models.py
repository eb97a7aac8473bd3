"""Transformers' models: built from a configuration as data, and given weights that were read.

A configuration is a mapping of a file's. Of it only what the class of the configuration knows is taken over,
and nothing that names code, kernels or other models; so nothing is imported, fetched or run for it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)

from pthserve.errors import ArchitectureError
from pthserve.text import quoted
from pthserve.zoos.bounded_build import BoundedBuild, check_numbers
from pthserve.zoos.layout import some

FILE = "config.json"
_MASKS = {
    "maskformer": "MaskFormerForInstanceSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
}
_KINDS: Mapping[str, Mapping[str, Any]] = {
    "classification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "detection": MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "segmentation": {**MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, **_MASKS},
}
"""Names of the classes of models by model_type, for each task."""
_NAME = re.compile(r"[\w.]*")
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


class Chosen(NamedTuple):
    """What a configuration names.

    Attributes:
        name: The name of the model's class.
        config: Its configuration.
        made: The class.
        kind: What it is for: `classification`, `detection` or `segmentation`.
    """

    name: str
    config: Any
    made: Any
    kind: str


def choose(values: Mapping[str, Any]) -> Chosen:
    """What the configuration names; raises ArchitectureError."""
    family = values["model_type"]
    tables = {
        kind: names[family] for kind, names in _KINDS.items() if isinstance(family, str) and family in names
    }
    if not tables:
        raise ArchitectureError(
            "config.json: transformers has no image classifier, detector or segmentation model of the "
            f"model_type {quoted(repr(family))}"
        )
    known = {
        kind: tuple(named) if isinstance(named, tuple) else (str(named),) for kind, named in tables.items()
    }
    stated = values.get("architectures") or next(iter(known.values()))
    found = [(kind, name) for kind, names in known.items() for name in names if name in stated]
    if not found:
        raise ArchitectureError(
            f"{FILE}: architectures: is {quoted(values.get('architectures'))}, and what is served of "
            f"{family} is {some([one for names in known.values() for one in names])}; save it with its head"
        )
    kind, name = found[0]
    code = _CODE if kind == "classification" else _CODE[:2]
    if named := [key for key in code if values.get(key)]:
        raise ArchitectureError(
            f"{FILE}: {named[0]}: names code or another model, which is not run or fetched; export the model "
            "with torch.export or to ONNX, and serve that"
        )
    config = _config(CONFIG_MAPPING[family], values)
    return Chosen(name, config, getattr(transformers, name), kind)


def _config(made: Any, values: Mapping[str, Any]) -> Any:
    usual = made()
    known = set(usual.to_dict()) | set(getattr(made, "attribute_map", {}))
    kept = {key: value for key, value in values.items() if key in known - _LEFT_OUT}
    check_numbers(kept, FILE)
    labels = values.get("id2label")
    if isinstance(labels, Mapping):
        kept["num_labels"] = len(labels)
    elif "num_labels" in values:
        kept["num_labels"] = values["num_labels"]
    if "backbone_config" in known:
        kept.pop("backbone", None)
        if (backbone := _backbone(values, usual)) is not None:
            kept["backbone_config"] = backbone
    try:
        return made.from_dict(kept)
    except Exception as error:  # it checks few of its values, and fails on others as it may
        raise ArchitectureError(f"{FILE}: {made.__name__} cannot use it: {quoted(error)}") from error


def _backbone(values: Mapping[str, Any], usual: Any) -> dict[str, Any] | None:
    """The configuration of the backbone, as data; None for the usual one.

    A backbone of timm has a name, by which timm builds it without weights. Any other name would be looked up
    in a hub, and a configuration may name code.
    """
    stated = values.get("backbone_config")
    if stated is not None and not isinstance(stated, Mapping):
        raise ArchitectureError(f"{FILE}: backbone_config: must be a mapping")
    found = dict(stated or {})
    if not found and values.get("backbone"):
        timm = getattr(usual.backbone_config, "model_type", "") == "timm_backbone"
        if not (timm and values.get("use_timm_backbone", True)):
            raise ArchitectureError(
                f"{FILE}: backbone: names another model, which is not fetched; save the model again with a "
                "newer transformers"
            )
        found = {**usual.backbone_config.to_dict(), "backbone": values["backbone"]}
    if not found:
        return None
    family, name = found.get("model_type"), found.get("backbone", "")
    known = isinstance(family, str) and family in CONFIG_MAPPING
    if not known or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArchitectureError(
            f"{FILE}: backbone_config: names a model, {quoted(repr(name or family))}, that transformers and "
            "timm do not have"
        )
    if named := [key for key in _CODE[:2] if found.get(key)]:
        raise ArchitectureError(f"{FILE}: backbone_config: {named[0]}: names code, which is not run")
    kept = {key: value for key, value in found.items() if key not in _LEFT_OUT}
    return {**kept, **({"use_pretrained_backbone": False} if family == "timm_backbone" else {})}


def load(name: str, made: Any, config: Any, state_dict: "Mapping[str, Any]") -> Any:
    """The model with exactly these weights; raises ArchitectureError."""
    tensors = sum(tensor.numel() for tensor in state_dict.values())
    try:
        with torch.device("meta"), BoundedBuild(CALLS, "model of transformers"):  # shapes without memory
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
