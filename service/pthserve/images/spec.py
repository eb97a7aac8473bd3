"""Spec: how an image is preprocessed, as it was in training."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ChannelOrder = Literal["rgb", "bgr"]
CropRounding = Literal["even", "down"]

_PHOTO = (1024, 768)
"""(width, height) of an ordinary photo."""
_RARE = {"longest": None, "whole": False, "rounded": True}
"""Fields that are left out of `to_dict` where they have these values, as before there were any others."""
_ANY = object()


@dataclass(frozen=True, slots=True)
class Spec:
    """Resize, crop, scale to 0..1, normalise: torchvision's Resize, CenterCrop, ToTensor and Normalize.

    resize: length of the shorter side in pixels after resizing, or (height, width), or None to leave it.
    longest: most pixels of the longer side after resizing to a shorter one; None for any number.
    crop: (height, width) in pixels of the centre crop.
    whole: True crops nothing: images keep their shapes, and `crop` is what one of 4 x 3 is resized to.
    rounded: False keeps the fractions that resizing gives, as torchvision's detectors do; the image is then
    normalised at once: float32 (channels, height, width). Only bilinear, without antialias.
    antialias: False resizes as torchvision does a tensor with `antialias=False` (bilinear and bicubic only).
    exif: True turns an image upright as its EXIF orientation says.
    channel_order: `bgr` gives the model blue first, as OpenCV reads images. Grey images have no order.
    crop_rounding: where a centre crop starts if its middle lies between two pixels: at the `even` number, as
    torchvision's CenterCrop, or `down`, as the image processors of Hugging Face.
    mean, std: one number a channel, of values in 0..1, in the order in which the model gets the channels;
    their length (1 or 3) says grey or colour.
    assumed: True when nobody said so and the common values were taken.
    The default values are those of torchvision's ImageNet reference training.
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

    @property
    def channels(self) -> int:
        """Channels of the image: 1 (grey) or 3 (colour)."""
        return len(self.mean)

    @classmethod
    def uncropped(cls, resize: int | tuple[int, int] | None, **rest: Any) -> "Spec":
        """A spec that crops nothing. rest: the other fields."""
        typical = Spec(resize, whole=True, **rest)
        width, height = typical.resized(*_PHOTO)
        return replace(typical, crop=(height, width))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that torchvision's Resize gives an image of `width` x `height` pixels."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if self.longest is not None:
            # torchvision's `_resize_image_and_masks`: both sides are cut to whole pixels.
            scale = min(self.resize / min(width, height), self.longest / max(width, height))
            return int(width * scale), int(height * scale)
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed uint8 image: (height, width, channels); see `whole`."""
        return (*self.crop, self.channels)

    @property
    def tensor_shape(self) -> tuple[int, int, int]:
        """Shape of one normalised float32 tensor: (channels, height, width); see `whole`."""
        return (self.channels, *self.crop)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a normalised tensor of this shape may go to the model as it is.

        Where nothing is cropped, that is one no larger than what images are resized to.
        """
        if not self.whole:
            return shape == self.tensor_shape
        most = self.longest or 2 * max(self.crop)
        return len(shape) == 3 and shape[0] == self.channels and 0 < min(shape[1:]) <= max(shape[1:]) <= most

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, ready for JSON or YAML; see `_RARE`."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value != _RARE.get(name, _ANY)}

    def to_card(self) -> str:
        """The spec as the value of `preprocessing` in a model card: YAML in one line, without defaults."""
        standard, fields = Spec(), ["resize", "crop"]
        fields += [
            name
            for name in (
                "longest",
                "interpolation",
                "antialias",
                "rounded",
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
        """All of it, for a log or a terminal."""
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
        """The inverse of `to_dict`, also after JSON or YAML; raises TypeError on a field it does not know."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)
