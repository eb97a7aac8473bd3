"""Settings: one frozen object; flag, environment variable and chart value share one name.

`PTHSERVE_MAX_BATCH`, `--max-batch` and `.Values.settings.maxBatch` are the same setting; a flag beats the
environment, the environment beats the default. The table is docs/settings.md.
"""

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from pthserve.text import whole

VARIABLE = "PTHSERVE_{}"
"""A setting's environment variable, of its name in capitals."""
CGROUP = Path("/sys/fs/cgroup")
_ADDRESS = r"^https?://[^/\s]+"
RATE = r"^([1-9]\d{0,8})\s*(?:/|\s+per\s+)\s*([1-9]\d{0,3})?\s*(second|minute|hour|day)s?$"
"""How a rate is written: requests, how many units of time (one where it is left out), and the unit."""
_HOST = r"(\*|(\*\.)?[\w-]+(\.[\w-]+)*)"
_ORIGIN = r"(\*|null|[a-z][a-z0-9+.-]*://[^/\s*]+)"
_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"


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


def listed(text: str | None) -> tuple[str, ...]:
    """The parts of a setting that is a list with commas; in lower case, for all such settings ignore case."""
    return tuple(part.strip().lower() for part in text.split(",")) if text is not None else ()


class Settings(BaseModel):
    """The settings of the service. Sizes are in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field("demo", description="weights file, folder with a model card, packed model, or `demo`")
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
    allow_code: str | None = Field(
        None,
        pattern=f"^{_MODULE}(,{_MODULE})*$",
        description="comma-separated modules whose code a card may name as its architecture; none is allowed "
        "when unset",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on; `0.0.0.0` or `::` means all addresses",
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free port")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="separate port for /metrics; when unset, /metrics is on the main port",
    )
    grpc_port: int | None = Field(None, ge=0, le=65535, description="port for gRPC; when unset, gRPC is off")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device that runs the model")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="library that runs the model")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", description="number format of the computation; `auto` never selects int8"
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
    max_inflight: int = Field(
        256, ge=1, le=100_000, description="maximum number of images accepted at the same time"
    )
    deadline: float = Field(10.0, gt=0, le=3600, description="request deadline in seconds")
    drain_seconds: float = Field(
        5.0, ge=0, le=3600, description="seconds to keep serving after SIGTERM, while reported as not ready"
    )
    max_body: int = Field(20 * 2**20, ge=1, le=2**30, description="maximum size of a request body in bytes")
    max_pixels: int = Field(
        50_000_000, ge=1, le=1_000_000_000, description="maximum size of an image in pixels"
    )
    decode_memory: int = Field(
        768 * 2**20,
        ge=2**20,
        le=2**40,
        description="maximum memory in bytes for all images that are being decoded; further images wait",
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
    reload_interval: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="seconds between checks for a changed model file; 0 reloads only on SIGHUP",
    )
    shadow: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of live traffic that is also sent to a new model before it replaces the "
        "old one",
    )
    shadow_agreement: float = Field(
        0.0,
        ge=0,
        le=1,
        description="minimum fraction of shadow traffic for which a new model must predict the same class",
    )
    api_keys: Path | None = Field(
        None, description="file with one API key per line; when unset, no key is needed"
    )
    rate_limit: str | None = Field(
        None,
        json_schema_extra={"pattern": RATE},
        description="maximum request rate per API key, or per client address without keys, such as "
        "`100/second`",
    )
    trusted_proxies: str | None = Field(
        None,
        description="comma-separated addresses or networks of proxies whose `X-Forwarded-For` names the "
        "client, such as `10.0.0.0/8, 192.0.2.7`; no proxy is trusted when unset",
    )
    allowed_hosts: str | None = Field(
        None,
        description="comma-separated host names that a request may be addressed to, beside IP addresses and "
        "localhost, such as `cats.example, *.cats.example`, or `*` for any; default: none on a loopback "
        "`host`, otherwise any",
    )
    cors_origins: str | None = Field(
        None,
        description="comma-separated origins whose pages may call the service from a browser, such as "
        "`https://shop.example`, or `*` for any; none when unset",
    )
    explain: Literal["on", "off"] = Field("on", description="whether POST /explain is available")
    otlp_endpoint: str | None = Field(
        None,
        json_schema_extra={"pattern": _ADDRESS},
        description="URL of an OpenTelemetry collector (OTLP over HTTP), such as `http://collector:4318`; "
        "when unset, no traces are sent",
    )
    log_format: Literal["json", "text"] = Field(
        "text", description="log format: one JSON object per line, or text for people"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum severity of log messages"
    )

    def __init__(self, **given: Any) -> None:
        """What is given, then what the environment says, then the defaults; raises ValidationError."""
        names = {name: VARIABLE.format(name.upper()) for name in type(self).model_fields}
        found = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        super().__init__(**(found | given))

    @field_validator("rate_limit")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        if value is not None and not re.match(RATE, value):
            raise ValueError(
                "must be a number of requests and a time, such as 100/second; times are in seconds, minutes, "
                "hours or days"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str | None) -> str | None:
        for text in listed(value):
            try:
                ip_network(text)
            except ValueError as error:
                raise ValueError(
                    f"must be addresses or networks with a comma between them, such as 10.0.0.0/8: {error}"
                ) from None
        return value

    @field_validator("allowed_hosts", "cors_origins")
    @classmethod
    def _are_names(cls, value: str | None, info: ValidationInfo) -> str | None:
        form, example = {
            "allowed_hosts": (_HOST, "host names without a port, such as cats.example or *.cats.example"),
            "cors_origins": (_ORIGIN, "origins without a path, such as https://shop.example"),
        }[str(info.field_name)]
        for text in listed(value):
            if not re.fullmatch(form, text):
                raise ValueError(f"must be {example}, with a comma between them; {text!r} is not")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not re.match(_ADDRESS, value):
            raise ValueError("must be an http or https address, such as http://collector:4318")
        return value

    @field_validator("name")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is not None and not whole(value).isprintable():
            raise ValueError("must be printable: it is part of URLs, metrics and the log")
        return value

    @property
    def code_modules(self) -> frozenset[str]:
        """What `allow_code` lists."""
        return frozenset(self.allow_code.split(",")) if self.allow_code else frozenset()

    @property
    def cpus(self) -> int:
        """CPU threads to use: `threads`, or what the cgroup grants."""
        return self.threads or cpu_quota()
