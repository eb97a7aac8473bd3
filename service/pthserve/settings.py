"""Settings: one frozen object; flag, environment variable and chart value share one name.

`PTHSERVE_MAX_BATCH`, `--max-batch` and `.Values.settings.maxBatch` are the same setting; a flag beats the
environment, the environment beats the default. The table is docs/settings.md.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

VARIABLE = "PTHSERVE_{}"
"""A setting's environment variable, of its name in capitals."""
CGROUP = Path("/sys/fs/cgroup")
_ADDRESS = r"^https?://[^/\s]+"


def cpu_quota() -> int:
    """Whole CPUs this process may use: the cgroup's quota rounded up (v2, then v1), or the affinity mask."""
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


class Settings(BaseModel):
    """What a user may choose. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("demo", description="weights file, folder with a card, packed folder, or `demo`")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 that the weights file must have; default: the card's",
    )
    name: str | None = Field(
        None, description="the model's name in answers and metrics; default: the card's, or the file's"
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; `0.0.0.0` or `::` are all there are"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="serve /metrics on this port alone")
    grpc_port: int | None = Field(None, ge=0, le=65535, description="serve gRPC on this port; off when unset")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the forward pass runs")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="what runs the forward pass")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", description="number format of the forward pass; `auto` never takes int8"
    )
    calibration: Path | None = Field(None, description="folder of images that int8 is calibrated on")
    decode: Literal["exact", "fast"] = Field(
        "exact",
        description="`exact`: torchvision's numbers to the bit; `fast`: within 0.3 grey levels, sooner",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; default: the cgroup's quota")
    max_batch: int | None = Field(
        None, ge=1, le=1024, description="most images in one forward pass; default: the plan's"
    )
    max_inflight: int = Field(256, ge=1, description="most images admitted at once")
    deadline: float = Field(10.0, gt=0, description="seconds after which an answer is of no use")
    drain_seconds: float = Field(5.0, ge=0, description="seconds of serving while not ready, after SIGTERM")
    max_body: int = Field(20 * 2**20, ge=1, description="largest request body, bytes")
    max_pixels: int = Field(50_000_000, ge=1, description="largest image, pixels")
    tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="largest difference of a probability from fp32's that a plan or a golden image may show",
    )
    tune_budget: float = Field(
        10.0, ge=0, description="seconds that tuning may take at load; 0 takes the default plan"
    )
    plan: Path | None = Field(None, description="plan file written by `pthserve tune`")
    cache_dir: Path | None = Field(None, description="folder for compiled models and plans")
    golden: Literal["gate", "warn", "off"] = Field("gate", description="what a disagreeing golden image does")
    reload_interval: float = Field(
        0.0, ge=0, description="seconds between looks at the model file; 0: only on SIGHUP"
    )
    shadow: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of live traffic that a new model must also answer before it is swapped in",
    )
    shadow_agreement: float = Field(
        0.0, ge=0, le=1, description="least share of agreement in the shadow phase"
    )
    api_keys: Path | None = Field(None, description="file with one API key a line; keys are off when unset")
    rate_limit: str | None = Field(
        None, description="requests a key, or a client without one, may send, such as `100/second`"
    )
    explain: Literal["on", "off"] = Field("on", description="whether POST /explain answers")
    otlp_endpoint: str | None = Field(
        None,
        json_schema_extra={"pattern": _ADDRESS},
        description="OpenTelemetry collector (OTLP over HTTP), such as `http://collector:4318`; traces are "
        "off when unset",
    )
    log_format: Literal["json", "text"] = Field(
        "text", description="one JSON object a line, or lines for a person"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line that is logged"
    )

    def __init__(self, **given: Any) -> None:
        """What is given, then what the environment says, then the defaults; raises ValidationError."""
        names = {name: VARIABLE.format(name.upper()) for name in type(self).model_fields}
        found = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        super().__init__(**(found | given))

    @field_validator("rate_limit")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        if value is not None:
            from limits import parse  # slow to import, and few ask for it

            try:
                amount = parse(value).amount
            except ValueError:
                amount = 0
            if not amount:
                raise ValueError("must be a number of requests and a time, such as 100/second")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.match(_ADDRESS, value):
            raise ValueError("must be an http or https address, such as http://collector:4318")
        return value

    @property
    def cpus(self) -> int:
        """CPU threads to use: `threads`, or what the cgroup grants."""
        return self.threads or cpu_quota()
