"""HF objects: small detectors and segmentation models at random, as `save_pretrained` writes them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LABELS = {0: "ant", 1: "bee", 2: "cat", 3: "dog"}

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
_DETR = {
    "backbone_config": {**_RESNET, "out_features": ["stage4"]},
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 20,
}
_SHAPE = {"size": {"shortest_edge": 96, "longest_edge": 130}}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
_SWIN = {
    "model_type": "swin",
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 4],
    "window_size": 4,
    "image_size": 64,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}

_RT_DETR = {
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [8, 16, 16],
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
    "num_queries": 20,
    "hidden_expansion": 0.5,
}

DETECTORS: Mapping[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "detr": ("DetrForObjectDetection", _DETR, "DetrImageProcessor", _SHAPE),
    "conditional_detr": (
        "ConditionalDetrForObjectDetection",
        _DETR,
        "ConditionalDetrImageProcessor",
        _SHAPE,
    ),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        {**_DETR, "backbone_config": _RESNET, "num_feature_levels": 3},
        "DeformableDetrImageProcessor",
        _SHAPE,
    ),
    "yolos": (
        "YolosForObjectDetection",
        {**_VIT, "image_size": [96, 128], "num_detection_tokens": 15},
        "YolosImageProcessor",
        _SHAPE,
    ),
    "rt_detr": (
        "RTDetrForObjectDetection",
        _RT_DETR,
        "RTDetrImageProcessor",
        {"size": {"height": 96, "width": 96}},
    ),
    "rt_detr_v2": (
        "RTDetrV2ForObjectDetection",
        _RT_DETR,
        "RTDetrImageProcessor",
        {"size": {"height": 96, "width": 96}},
    ),
    "d_fine": (
        "DFineForObjectDetection",
        _RT_DETR,
        "RTDetrImageProcessor",
        {"size": {"height": 96, "width": 96}},
    ),
    "table-transformer": ("TableTransformerForObjectDetection", _DETR, "DetrImageProcessor", _SHAPE),
    "dab-detr": (
        "DabDetrForObjectDetection",
        {**{key: value for key, value in _DETR.items() if key != "d_model"}, "hidden_size": 32},
        "ConditionalDetrImageProcessor",
        _SHAPE,
    ),
}
"""By model_type: class and configuration, image processor and its settings."""

_SQUARE = {"size": {"height": 64, "width": 64}}
SEGMENTERS: Mapping[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        "SegformerImageProcessor",
        _SQUARE,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {**_RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "hidden_size": 16,
            "use_auxiliary_head": False,
        },
        "SegformerImageProcessor",
        _SQUARE,
    ),
    "beit": (
        "BeitForSemanticSegmentation",
        {**_VIT, "image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4]},
        "BeitImageProcessor",
        {**_SQUARE, "do_center_crop": False},
    ),
    "dpt": (
        "DPTForSemanticSegmentation",
        {
            **_VIT,
            "image_size": 64,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
        },
        "DPTImageProcessor",
        _SQUARE,
    ),
    "data2vec-vision": (
        "Data2VecVisionForSemanticSegmentation",
        {**_VIT, "image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4]},
        "BeitImageProcessor",
        {**_SQUARE, "do_center_crop": False},
    ),
    "mobilevit": (
        "MobileViTForSemanticSegmentation",
        {
            "hidden_sizes": [16, 16, 32],
            "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
            "num_attention_heads": 4,
        },
        "MobileViTImageProcessor",
        {**_SQUARE, "do_center_crop": False},
    ),
    "mobilenet_v2": (
        "MobileNetV2ForSemanticSegmentation",
        {"depth_multiplier": 0.35, "output_stride": 16},
        "MobileNetV2ImageProcessor",
        {**_SQUARE, "do_center_crop": False},
    ),
    "maskformer": (
        "MaskFormerForInstanceSegmentation",
        {
            "backbone_config": _SWIN,
            "decoder_config": {
                "model_type": "detr",
                **{key: value for key, value in _DETR.items() if key != "backbone_config"},
            },
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
        },
        "MaskFormerImageProcessor",
        {**_SQUARE, "size_divisor": 32},
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        {
            "backbone_config": _SWIN,
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "dim_feedforward": 32,
            "num_attention_heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_queries": 10,
        },
        "Mask2FormerImageProcessor",
        {**_SQUARE, "size_divisor": 32},
    ),
}


def save(
    folder: Path, family: str, processor: Mapping[str, Any] | None = None, **other: Any
) -> tuple[Any, Any]:
    """Write a model of the family with its processor; both, as transformers has them."""
    import transformers
    from transformers.models.auto import image_processing_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name, usual, processor_name, sizes = {**DETECTORS, **SEGMENTERS}[family]
    settings = {**usual, **other}
    sizes = {**sizes, **(processor or {})}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIG_MAPPING[family](
            **settings, id2label=LABELS, label2id={label: number for number, label in LABELS.items()}
        )
        model = getattr(transformers, name)(config).eval()
        for parameter in model.parameters():  # so that answers depend on the image
            if parameter.ndim > 1:
                std = 0.1 if family in ("maskformer", "d_fine") else 0.3
                torch.nn.init.normal_(parameter, std=std)
        made: Any = image_processing_auto.get_image_processor_class_from_name(f"{processor_name}Pil")
        prepared = made(**sizes)
        model.save_pretrained(folder)
        prepared.save_pretrained(folder)
    return model, prepared
