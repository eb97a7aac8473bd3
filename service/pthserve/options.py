"""Options: what is needed to load a model, without the settings of the service."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pthserve.cpus import cpu_quota
from pthserve.text import whole

_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"


def user_cache() -> Path | None:
    """Return the folder for the user's caches of pthserve; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pthserve"
    except RuntimeError:
        return None


class ModelOptions(BaseModel):
    """How a model is loaded. Sizes are in bytes, times in seconds.

    The environment is not read here; `Settings.read`, which has these options too, reads it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="expected SHA-256 of the weights file; default: the one in the model card, if any",
    )
    name: str | None = Field(
        None,
        description="name of the model in responses and metrics; default: from the model card, else the "
        "file name",
    )
    architecture: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="architecture of the weights, such as `resnet50` or `timm/tf_efficientnet_b0`; default: "
        "the one in the model card, else recognised by names and shapes",
    )
    allow_code: str | None = Field(
        None,
        pattern=f"^{_MODULE}(,{_MODULE})*$",
        description="comma-separated modules whose code a card may name as its architecture; none is allowed "
        "when unset",
    )
    task: Literal[
        "auto",
        "classification",
        "multilabel",
        "binary",
        "regression",
        "embedding",
        "detection",
        "segmentation",
    ] = Field(
        "auto",
        description="kind of answer; `auto` uses the task that the model card or the file states, else "
        "classification",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device that runs the model")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="library that runs the model")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="number format of the computation; tf32 needs CUDA; `auto` selects int8 only if the "
        "model is packed with it; it selects a precision only if its answers agree with fp32 "
        "PyTorch (docs/precision.md)",
    )
    calibration: Path | None = Field(
        None, description="folder of at least 20 photos for int8, of the kind that the model will see"
    )
    weight_bits: int | None = Field(
        None,
        ge=7,
        le=8,
        description="bits of the weights at int8, 7 or 8; 8 needs VNNI or AMX, on the processor that "
        "packs the model and on the one that serves it; default: 8 if this processor has either, otherwise 7",
    )
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="image decoding: `exact` gives the same pixels as torchvision, bit for bit; `fast` "
        "is faster for large photos and differs by at most 0.3 grey levels",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="number of CPU threads; default: the CPU limit of the container or machine, which is "
        "followed when it changes",
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="maximum number of images in one batch; default: the value in the plan, or up to 16 for "
        "`pthserve score` if that is more",
    )
    max_pixels: int = Field(
        50_000_000, ge=1, le=1_000_000_000, description="maximum size of an image in pixels"
    )
    validation: Path | None = Field(
        None,
        description="images on which engines and precisions are compared with fp32 PyTorch: a folder, one "
        "with a subfolder for each class, or a CSV file of images and classes; default: the golden images "
        "and the sample images of the package",
    )
    tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="maximum difference of a probability from fp32 PyTorch: on average over at least 200 "
        "images for an engine and precision, and for each golden image from its known answer",
    )
    max_accuracy_drop: str | None = Field(
        None,
        pattern=r"^\d{1,2}(\.\d{1,6})?%$",
        description="maximum drop in accuracy from fp32 PyTorch, such as `0.5%`, on the labelled images of "
        "`validation`; it decides on an engine and precision instead of `tolerance`",
    )
    tune_budget: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="maximum tuning time in seconds when a model is loaded; 0 uses the default plan",
    )
    plan: Path | None = Field(None, description="plan file written by `pthserve tune`")
    cache_dir: Path | None = Field(
        None,
        description="cache folder for downloaded and packed models; if set, compiled models and plans are "
        "cached in it too; default: `pthserve` in the user's cache folder",
    )
    max_download: int = Field(
        32 * 2**30, ge=1, le=2**50, description="maximum size in bytes of a model that is downloaded"
    )
    require_signature: Path | None = Field(
        None,
        description="file with a public key; a model is then loaded only if `pthserve sign`, or another tool "
        "with the format of OpenSSF Model Signing, signed it with the private key",
    )
    golden: Literal["gate", "warn", "off"] = Field(
        "gate",
        description="what happens when a golden image fails: `gate` rejects the model, `warn` logs a "
        "warning, `off` skips the check",
    )

    def __init__(self, **given: Any) -> None:
        """Use the given values, and defaults for the others; raises ValidationError."""
        super().__init__(**given)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and not whole(value).isprintable():
            raise ValueError("must be printable text, since it is part of URLs, metrics and the log")
        return value

    @property
    def accuracy_drop(self) -> float | None:
        """`max_accuracy_drop` as a share, 0 to 1."""
        return None if self.max_accuracy_drop is None else float(self.max_accuracy_drop[:-1]) / 100

    @property
    def code_modules(self) -> frozenset[str]:
        """The modules listed in `allow_code`."""
        return frozenset(self.allow_code.split(",")) if self.allow_code else frozenset()

    @property
    def cpus(self) -> int:
        """The number of CPU threads to use: `threads`, or the number of CPUs that the process may use now."""
        return self.threads or cpu_quota()
