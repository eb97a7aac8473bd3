"""Image processors of Hugging Face: `preprocessor_config.json` as a Spec, held to what the processor makes.

The processor's class is one of transformers' own, named in the file or by the model. It is asked for its
settings, in which its defaults are filled in, and then for pictures, which tells whether the Spec does the
same. Resizing is Pillow's, as in the processors with the backend `pil`, to the bit; the backend `torchvision`
rounds one pixel in a hundred to another grey level.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError
from pthserve.images.preprocess import crop_image, normalise
from pthserve.images.spec import Interpolation, SideRule, Spec
from pthserve.text import quoted

FILE = "preprocessor_config.json"
LEVELS = 0.001
"""Grey levels, of 255, by which the Spec and the processor may differ on average."""

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
_CONVNEXT = {**_IMAGENET, "size": {"shortest_edge": 224}}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "regnet": _CONVNEXT,
    "resnet": _CONVNEXT,
    "swin": _IMAGENET,
    "deit": _IMAGENET,
}
"""By model_type, settings with which the family's first models were published, where the defaults of its
processor in transformers are others. They are those of the same weights in timm (convnext_tiny.fb_in1k,
convnextv2_tiny.fcmae_ft_in1k, regnety_040.pycls_in1k, resnet50.a1_in1k, swin_tiny_patch4_window7_224.ms_in1k,
deit_base_distilled_patch16_224.fb_in1k). How much is cropped is left to the processor."""

_FILTERS: Mapping[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Pillow's numbers of its filters."""
_SIDES = (480, 357), (300, 451), (640, 641)
"""Of the images that both are compared on, as (width, height): with odd sides, lying and standing."""


def read(values: Mapping[str, Any], model_type: str) -> tuple[Spec, Inferred]:
    """The preprocessing that the image processor with the settings `values` does, and what that rests on.

    Raises:
        ArchitectureError: it does something that a Spec cannot say; a card can.
    """
    processor = _processor(values, model_type)
    spec = _spec(processor)
    apart = _difference(processor, spec)
    if apart > LEVELS:
        raise ArchitectureError(
            f"{FILE}: {type(processor).__name__} makes images that differ by {apart:.2g} grey levels from "
            f"`{spec.to_card()}`; state `preprocessing` in model.yaml"
        )
    return spec, Inferred(
        "preprocessing", f"{spec.words()}, as in {FILE}", Origin.FILE, f"preprocessing: {spec.to_card()}"
    )


def _processor(values: Mapping[str, Any], model_type: str) -> Any:
    from transformers.models.auto import image_processing_auto

    auto: Any = image_processing_auto

    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    if name is None:
        known = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
        name = known.get("torchvision") if isinstance(known, Mapping) else None
    name = str(name).removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    own = {
        candidate
        for names in auto.IMAGE_PROCESSOR_MAPPING_NAMES.values()
        for candidate in (names.values() if isinstance(names, Mapping) else names)
    }
    made = auto.get_image_processor_class_from_name(f"{name}Pil") if f"{name}Pil" in own else None
    if made is None:
        raise ArchitectureError(
            f"{FILE}: transformers has no image processor {quoted(name)}; state `preprocessing` in model.yaml"
        )
    settings = {key: value for key, value in values.items() if key in made.valid_kwargs.__annotations__}
    settings |= {key: values[key] for key in _COMMON if key in values}
    try:
        return made(**settings)
    except Exception as error:  # it checks few of its settings, and fails on others as it may
        raise ArchitectureError(f"{FILE}: {name} cannot use it: {quoted(error)}") from error


_COMMON = (
    *("do_resize", "size", "resample", "default_to_square", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb", "crop_pct"),
    *("do_flip_channel_order", "rescale_offset", "do_pad", "pad_size"),
)


def _spec(processor: Any) -> Spec:
    """The settings of the processor as a Spec; raises ArchitectureError."""
    name = type(processor).__name__.removesuffix("Pil")
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    resize: int | tuple[int, int] | None = None
    if processor.do_resize:
        resize, crop = _SIZES.get(name, _plain)(processor, crop)
    if crop is None:
        crop = resize if isinstance(resize, tuple) else None
    keeping = name in _KEEPING and processor.do_resize and processor.size.shortest_edge
    if crop is None and not keeping:
        raise ArchitectureError(
            f"{FILE}: {name} makes images of no fixed size; state `preprocessing` in model.yaml"
        )
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    normalises = bool(processor.do_normalize) and name != "MobileViTImageProcessor"
    mean, std = (processor.image_mean, processor.image_std) if normalises else ([0.0] * 3, [1.0] * 3)
    offset = 1.0 if getattr(processor, "rescale_offset", False) and processor.do_rescale else 0.0
    if getattr(processor, "include_top", False):  # EfficientNet divides once more
        std = [value * again for value, again in zip(std, processor.image_std, strict=True)]
    try:
        made: Callable[..., Spec] = Spec if crop else Spec.uncropped
        sizes: dict[str, Any] = {"resize": resize, "crop": crop}
        if crop is None:
            size = processor.size
            longest = size.longest_edge or size.shortest_edge
            sizes = {"resize": size.shortest_edge, "longest": longest, "sides": _KEEPING[name]}
        return made(
            **sizes,
            interpolation=_FILTERS[int(processor.resample)] if processor.do_resize else "bilinear",
            exif=True,
            channel_order="bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
            crop_rounding="down",
            mean=tuple((float(value) + offset) / (255 * factor) for value in mean),
            std=tuple(float(value) / (255 * factor) for value in std),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ArchitectureError(f"{FILE}: {name} cannot be read: {quoted(error)}") from error


_KEEPING: Mapping[str, SideRule] = {
    "DetrImageProcessor": "detr",
    "ConditionalDetrImageProcessor": "detr",
    "DeformableDetrImageProcessor": "detr",
    "RTDetrImageProcessor": "detr",
    "YolosImageProcessor": "yolos",
}
"""Processors that keep the shape of an image between a shortest and a longest edge, with their rule."""

Sizes = tuple[int | tuple[int, int] | None, tuple[int, int] | None]
"""What to resize to, and to crop to."""


def _sides(size: Any) -> tuple[int, int] | None:
    return (size.height, size.width) if size is not None and size.height and size.width else None


def _plain(processor: Any, crop: tuple[int, int] | None) -> Sizes:
    size = processor.size
    if size.longest_edge or size.max_height:
        return None, None
    return _sides(size) or size.shortest_edge, crop


def _convnext(processor: Any, crop: tuple[int, int] | None) -> Sizes:
    side = processor.size.shortest_edge
    if not side:
        return None, None
    if side >= 384:
        return (side, side), crop
    return int(side / processor.crop_pct), crop or (side, side)


def _levit(processor: Any, crop: tuple[int, int] | None) -> Sizes:
    side = processor.size.shortest_edge
    return (int((256 / 224) * side), crop) if side else _plain(processor, crop)


def _poolformer(processor: Any, crop: tuple[int, int] | None) -> Sizes:
    if processor.crop_pct is None:
        return _plain(processor, crop)
    side = processor.size.shortest_edge or (
        processor.size.height if processor.size.height == processor.size.width else None
    )
    if side:
        return int(side / processor.crop_pct), crop
    sides = _sides(processor.size)
    return (sides and (int(sides[0] / processor.crop_pct), int(sides[1] / processor.crop_pct))), crop


_SIZES: Mapping[str, Callable[[Any, tuple[int, int] | None], Sizes]] = {
    "ConvNextImageProcessor": _convnext,
    "LevitImageProcessor": _levit,
    "PoolFormerImageProcessor": _poolformer,
}
"""Processors with a way of their own to resize."""


def _difference(processor: Any, spec: Spec) -> float:
    """By how many grey levels of 255 the two differ on average; infinity where in shape."""
    worst = 0.0
    for width, height in _SIDES:
        image = _picture(width, height)
        try:
            made = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)
        except Exception as error:
            raise ArchitectureError(f"{FILE}: {type(processor).__name__} failed: {quoted(error)}") from error
        ours = normalise(crop_image(image, spec, max_pixels=2**30)[None], spec)[0]
        if made.shape != ours.shape:
            return math.inf
        std = np.asarray(spec.std, np.float32)[:, None, None]
        worst = max(worst, float((np.abs(made - ours) * std).mean() * 255))
    return worst


def _picture(width: int, height: int) -> Image.Image:
    """A picture in which every place and every channel is told from others: waves, and noise over them."""
    across, down = np.arange(width) / width, np.arange(height)[:, None] / height
    waves = [np.sin(9 * across + 5 * down), np.cos(7 * down - 4 * across), np.sin(13 * across * down)]
    noise = np.random.default_rng(0).random((height, width, 3))
    values = np.stack(waves, -1) * 90 + 110 + 40 * noise
    return Image.fromarray(values.astype(np.uint8), "RGB")


def in_size(spec: Spec, side: object) -> Spec:
    """`spec` for square images of `side` pixels, where that is a side, with as much cut off."""
    if not isinstance(side, int) or isinstance(side, bool) or side < 1 or spec.crop == (side, side):
        return spec
    resize: int | tuple[int, int] | None = (side, side)
    if isinstance(spec.resize, int):
        resize = round(spec.resize * side / min(spec.crop))
    elif spec.resize is None or spec.resize != spec.crop:
        scale = side / min(spec.crop)
        resize = spec.resize and (round(spec.resize[0] * scale), round(spec.resize[1] * scale))
    return replace(spec, resize=resize, crop=(side, side))


def in_channels(spec: Spec, channels: int) -> Spec:
    """`spec` for a model of one channel, whose processor gives one number for it or the same for three."""
    if channels == spec.channels:
        return spec
    return replace(spec, mean=spec.mean[:1], std=spec.std[:1])
