"""Families: tiny image classifiers of transformers, made from scratch, each with its own image processor."""

import warnings
from pathlib import Path
from typing import Any

import torch

LABELS = {0: "cat", 1: "dog", 2: "espresso"}


def _lively(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with weights of which answers depend on the image, and with statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.ndim > 1 and "position" not in name:
                fan = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan**-0.5)
    with torch.no_grad():  # so that the statistics are those of some images
        for _ in range(30):
            model.train()(pixel_values=torch.randn(4, 3, 64, 64, generator=generator))
    return model.eval()


def save(folder: Path, family: str, **more: Any) -> torch.nn.Module:
    """The model of `family`, saved in `folder` as `save_pretrained` does; more: of its configuration."""
    import transformers

    config, model, processor, fields, settings = FAMILIES[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = _lively(
            getattr(transformers, model)(
                getattr(transformers, config)(
                    **{
                        "id2label": LABELS,
                        "label2id": {label: number for number, label in LABELS.items()},
                        **fields,
                        **more,
                    }
                )
            )
        )
        made.save_pretrained(folder)
        if processor:
            getattr(transformers, processor)(**settings).save_pretrained(folder)
    return made


Family = tuple[str, str, str, dict[str, Any], dict[str, Any]]


def _family(name: str, processor: str, settings: dict[str, Any], /, **fields: Any) -> Family:
    return f"{name}Config", f"{name}ForImageClassification", processor, fields, settings


_TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SQUARE = {"size": {"height": 64, "width": 64}}
_CROP = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
_VIT = {**_TOKENS, "image_size": 64, "patch_size": 16}
_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_EFFICIENTNET = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}
_PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32]}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40]}

FAMILIES: dict[str, Family] = {
    "vit": _family("ViT", "ViTImageProcessor", _SQUARE, **_VIT),
    "deit": _family(
        "DeiT", "DeiTImageProcessor", {"size": {"height": 72, "width": 72}, "crop_size": 64}, **_VIT
    ),
    "beit": _family("Beit", "BeitImageProcessor", _SQUARE, **_VIT, use_relative_position_bias=True),
    "data2vec": _family("Data2VecVision", "BeitImageProcessor", _SQUARE, **_VIT),
    "dinov2": _family(
        "Dinov2",
        "BitImageProcessor",
        _CROP,
        **{name: value for name, value in _VIT.items() if name != "intermediate_size"},
    ),
    "vit_msn": _family("ViTMSN", "ViTImageProcessor", _SQUARE, **_VIT),
    "swin": _family("Swin", "ViTImageProcessor", _SQUARE, **_SWIN),
    "swinv2": _family("Swinv2", "ViTImageProcessor", _SQUARE, **_SWIN),
    "convnext": _family("ConvNext", "ConvNextImageProcessor", {"size": {"shortest_edge": 64}}, **_STAGES),
    "convnextv2": _family(
        "ConvNextV2", "ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.9}, **_STAGES
    ),
    "convnext_384": _family(
        "ConvNext", "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, **_STAGES
    ),
    "resnet": _family(
        "ResNet",
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_pct": 0.875},
        embedding_size=16,
        layer_type="basic",
        **_STAGES,
    ),
    "regnet": _family(
        "RegNet",
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}},
        embedding_size=16,
        groups_width=8,
        **_STAGES,
    ),
    "mobilenet_v1": _family("MobileNetV1", "MobileNetV1ImageProcessor", _CROP, depth_multiplier=0.25),
    "mobilenet_v2": _family("MobileNetV2", "MobileNetV2ImageProcessor", _CROP, depth_multiplier=0.35),
    "mobilevit": _family(
        "MobileViT",
        "MobileViTImageProcessor",
        _CROP,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 48],
        num_attention_heads=2,
    ),
    "efficientnet": _family(
        "EfficientNet",
        "EfficientNetImageProcessor",
        {**_SQUARE, "do_center_crop": False, "resample": 0},
        **_EFFICIENTNET,
    ),
    "efficientnet_offset": _family(
        "EfficientNet",
        "EfficientNetImageProcessor",
        {**_SQUARE, "rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False},
        **_EFFICIENTNET,
    ),
    "pvt": _family(
        "Pvt",
        "PvtImageProcessor",
        _SQUARE,
        image_size=64,
        **_PYRAMID,
        num_attention_heads=[1, 2, 2, 4],
        mlp_ratios=[2, 2, 2, 2],
        num_labels=3,
    ),
    "levit": _family(
        "Levit",
        "LevitImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": 64},
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "cvt": _family(
        "Cvt",
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}},
        embed_dim=[16, 24, 32],
        num_heads=[1, 2, 2],
        depth=[1, 2, 3],
    ),
    "segformer": _family(
        "Segformer",
        "SegformerImageProcessor",
        _SQUARE,
        **_PYRAMID,
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
    ),
    "poolformer": _family(
        "PoolFormer",
        "PoolFormerImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": 64},
        **_PYRAMID,
    ),
    "focalnet": _family(
        "FocalNet",
        "BitImageProcessor",
        _CROP,
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        focal_levels=[1, 1, 1, 1],
        focal_windows=[3, 3, 3, 3],
    ),
    "bit": _family(
        "Bit",
        "BitImageProcessor",
        _CROP,
        embedding_size=32,
        hidden_sizes=[32, 32, 64, 64],
        depths=[1, 1, 1, 1],
        num_groups=8,
    ),
    "siglip": _family("Siglip", "SiglipImageProcessor", _SQUARE, vision_config=_VIT),
    "swiftformer": _family(
        "SwiftFormer",
        "ViTImageProcessor",
        _SQUARE,
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[16, 16, 32, 32],
    ),
    "hiera": _family(
        "Hiera",
        "BitImageProcessor",
        _CROP,
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 1, 1, 1],
    ),
}
