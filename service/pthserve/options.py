"""Options: what is needed to load a model, without the settings of the service."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pthserve.text import whole

CGROUP = Path("/sys/fs/cgroup")
_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"


def cpu_quota() -> int:
    """Return the number of CPUs this process may use.

    That is the quota of the cgroup (v2, then v1), rounded up, or the size of the affinity mask.
    """
    affinity = len(os.sched_getaffinity(0))
    for quota, period in (_cgroup_v2(), _cgroup_v1()):
        if quota > 0 and period > 0:
            return min(affinity, max(1, -(-quota // period)))
    return affinity


def _cgroup_v2() -> tuple[int, int]:
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except OSError:
        return 0, 0
    return (0 if quota == "max" else int(quota)), int(period)


def _cgroup_v1() -> tuple[int, int]:
    folder = CGROUP / "cpu"
    try:
        return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
    except OSError:
        return 0, 0


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
        "auto", "classification", "multilabel", "binary", "regression", "embedding", "detection"
    ] = Field(
        "auto",
        description="what the model answers; `auto` takes what the model card or the file states, else "
        "classification",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device that runs the model")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="library that runs the model")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="number format of the computation; tf32 needs CUDA; `auto` never selects int8",
    )
    calibration: Path | None = Field(None, description="folder of images for int8 calibration")
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="image decoding: `exact` gives the same pixels as torchvision, bit for bit; `fast` "
        "is faster for large photos and differs by at most 0.3 grey levels",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="number of CPU threads; default: the CPU limit of the container or machine",
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="maximum number of images in one batch; default: the value in the plan",
    )
    max_pixels: int = Field(
        50_000_000, ge=1, le=1_000_000_000, description="maximum size of an image in pixels"
    )
    tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="maximum difference of a probability from fp32 that is accepted for a plan or a "
        "golden image",
    )
    tune_budget: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="maximum tuning time in seconds when a model is loaded; 0 uses the default plan",
    )
    plan: Path | None = Field(None, description="plan file written by `pthserve tune`")
    cache_dir: Path | None = Field(None, description="folder in which compiled models and plans are cached")
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
    def code_modules(self) -> frozenset[str]:
        """The modules listed in `allow_code`."""
        return frozenset(self.allow_code.split(",")) if self.allow_code else frozenset()

    @property
    def cpus(self) -> int:
        """The number of CPU threads to use: `threads`, or the limit of the cgroup."""
        return self.threads or cpu_quota()
