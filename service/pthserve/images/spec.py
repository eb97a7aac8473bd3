"""Spec: the preprocessing of images that a model was trained with."""

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ChannelOrder = Literal["rgb", "bgr"]
SideRule = Literal["torchvision", "detr", "yolos"]
CropRounding = Literal["even", "down"]

_PHOTO = (1024, 768)
"""(width, height) of a common photo."""
_RARE = {"longest": None, "whole": False, "rounded": True, "pad": None, "sides": "torchvision"}
"""Fields that `to_dict` leaves out if they have these values, for compatibility with older versions."""
_WHOLE = 8
"""Pixels of an image that is not cropped, as multiples of those of a 4 x 3 image. Without a limit, a narrow
image, resized by its shorter side, could have any number, and its forward pass any cost."""
_ANY = object()


@dataclass(frozen=True, slots=True)
class Spec:
    """Resize, crop, scale to 0..1, normalise: torchvision's Resize, CenterCrop, ToTensor and Normalize.

    The default values are those of torchvision's ImageNet reference training.

    Attributes:
        resize: Length of the shorter side in pixels after resizing, or (height, width), or None for no
            resizing.
        crop: (height, width) of the centre crop in pixels.
        antialias: False resizes as torchvision does with a tensor and `antialias=False` (bilinear and bicubic
            only).
        exif: True turns an image upright according to its EXIF orientation.
        channel_order: `bgr` puts blue first, as OpenCV reads images. Grey images have no order.
        crop_rounding: Where a centre crop starts if its middle is between two pixels: at the `even` number,
            as torchvision's CenterCrop, or `down`, as the image processors of Hugging Face.
        mean: One number per channel, for values in 0..1, in the model's order of channels. The length (1 or
            3) implies grey or colour.
        std: As many numbers, by which the values are then divided.
        assumed: True if the values are not stated anywhere, so that the usual ones are used.
        longest: Maximum length of the longer side in pixels after resizing the shorter one; None for no
            limit.
        whole: True does not crop: images keep their shapes, and `crop` is the size of a photo of 4 x 3 after
            resizing.
        rounded: False keeps the fractions that resizing gives, as torchvision's detectors do. The image is
            then normalised, too: float32 (channels, height, width). Only bilinear without antialias.
        pad: The grey level, 0 to 255, with which an image that keeps its shape is filled up to `crop` on
            both sides, as YOLO's letterbox. `resize` and `crop` are then the same. None for no padding.
        sides: How `longest` rounds both sides: as `torchvision`'s detectors, or as the image processors of
            Hugging Face's DETR (`detr`) or YOLOS (`yolos`, to multiples of 16).
    """

    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    exif: bool = False
    channel_order: ChannelOrder = "rgb"
    crop_rounding: CropRounding = "even"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    assumed: bool = False
    longest: int | None = None
    whole: bool = False
    rounded: bool = True
    pad: int | None = None
    sides: SideRule = "torchvision"

    @property
    def channels(self) -> int:
        """Channels of the image: 1 (grey) or 3 (colour)."""
        return len(self.mean)

    @classmethod
    def uncropped(cls, resize: int | tuple[int, int] | None, **rest: Any) -> "Spec":
        """Return a spec without a crop; `rest` has the other fields."""
        typical = Spec(resize, whole=True, **rest)
        width, height = typical.resized(*_PHOTO)
        return replace(typical, crop=(height, width))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of an image of `width` x `height` pixels after torchvision's Resize."""
        if self.resize is None:
            return width, height
        if self.pad is not None:
            scale = self._letterbox_scale(width, height)
            return round(width * scale), round(height * scale)
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if self.longest is not None and self.sides != "torchvision":
            return self._resized_as_detr(width, height, self.resize, self.longest)
        if self.longest is not None:
            # As torchvision's `_resize_image_and_masks`: both sides are rounded down.
            scale = min(self.resize / min(width, height), self.longest / max(width, height))
            return int(width * scale), int(height * scale)
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def _resized_as_detr(self, width: int, height: int, shorter: int, longer: int) -> tuple[int, int]:
        """As transformers' `get_size_with_aspect_ratio`, or `get_size_with_aspect_ratio_yolos`."""
        least, most = min(width, height), max(width, height)
        exact: float = shorter
        if most / least * shorter > longer:
            exact = longer * least / most
        side = round(exact)
        if least == side and (self.sides == "detr" or width >= height):
            sides = width, height
        elif width < height:
            sides = side, int(exact * height / width)
        else:
            sides = int(exact * width / height), side
        step = 16 if self.sides == "yolos" else 1
        return sides[0] - sides[0] % step, sides[1] - sides[1] % step

    def _letterbox_scale(self, width: int, height: int) -> float:
        """Return the scale at which the image fits into `crop`, as in YOLO's letterbox."""
        return min(self.crop[0] / height, self.crop[1] / width)

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return what the model's image shows of an image of `width` x `height` pixels.

        Returns:
            Left, top, width and height, in pixels of the image, which a letterbox exceeds. Crops are not
            considered.
        """
        if self.pad is None:
            return 0.0, 0.0, width, height
        scale = self._letterbox_scale(width, height)  # not rounded, as in Ultralytics' `scale_boxes`
        left, top = (
            centre_offset(old, new, "even")
            for old, new in zip(self.resized(width, height), self.crop[::-1], strict=True)
        )
        return left / scale, top / scale, self.crop[1] / scale, self.crop[0] / scale

    @property
    def shows_all(self) -> bool:
        """Whether the model gets the whole of an image, so that its places are places of the image."""
        return self.whole or (self.resize is not None and self.resize == self.crop)

    @property
    def most_resized(self) -> float:
        """Maximum number of pixels after resizing, where nothing is cropped; see `_WHOLE`."""
        return _WHOLE * self.crop[0] * self.crop[1] if self.whole and self.resize is not None else math.inf

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed uint8 image: (height, width, channels); see `whole`."""
        return (*self.crop, self.channels)

    @property
    def tensor_shape(self) -> tuple[int, int, int]:
        """Shape of one normalised float32 tensor: (channels, height, width); see `whole`."""
        return (self.channels, *self.crop)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether the model accepts a normalised tensor of this shape, (channels, height, width).

        Without a crop, it may be at most as large as a resized image.
        """
        if not self.whole:
            return shape == self.tensor_shape
        most = self.longest or 2 * max(self.crop)
        return len(shape) == 3 and shape[0] == self.channels and 0 < min(shape[1:]) <= max(shape[1:]) <= most

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values for JSON or YAML; see `_RARE`."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value != _RARE.get(name, _ANY)}

    def to_card(self) -> str:
        """Return the value of `preprocessing` in a model card: YAML in one line, without defaults."""
        standard, fields = Spec(), ["resize", "crop"]
        fields += [
            name
            for name in (
                "longest",
                "sides",
                "interpolation",
                "antialias",
                "rounded",
                "pad",
                "exif",
                "channel_order",
                "crop_rounding",
                "mean",
                "std",
            )
            if getattr(self, name) != getattr(standard, name)
        ]
        return "{" + ", ".join(f"{name}: {self._value(name)}" for name in fields) + "}"

    def words(self) -> str:
        """Return the spec as text for a log or a terminal."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self._resizing()}, {'no crop' if self.whole else f'crop {self.crop[0]}x{self.crop[1]}'}, "
            f"{'grey' if self.channels == 1 else self.channel_order.upper()}, mean {mean}, std {std}"
            + ", upright by EXIF"
            * self.exif
        )

    def _resizing(self) -> str:
        if self.resize is None:
            return "no resize"
        size = (
            f"the shorter side to {self.resize}"
            + (f" and the longer one to at most {self.longest}" if self.longest else "")
            if isinstance(self.resize, int)
            else f"to {self.resize[0]}x{self.resize[1]}"
            + f", keeping the shape and padding with {self.pad}" * (self.pad is not None)
        )
        return (
            f"resize {size}, {self.interpolation}"
            + " without antialias" * (not self.antialias)
            + ", not rounded" * (not self.rounded)
        )

    def _value(self, name: str) -> str:
        value = getattr(self, name)
        if name == "crop" and self.whole:
            value = None
        elif name == "crop" and value[0] == value[1]:
            value = value[0]
        return json.dumps(value)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """Return the spec for the result of `to_dict`; raises TypeError for an unknown field."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


def centre_offset(resized: int, crop: int, rounding: CropRounding) -> int:
    """Return the start of a centre crop; negative if the crop is larger, which adds a border."""
    if crop > resized:
        return -((crop - resized) // 2)
    return (resized - crop) // 2 if rounding == "down" else round((resized - crop) / 2)
