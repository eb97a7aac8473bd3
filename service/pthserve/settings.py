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
    """What a user may choose. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field("demo", description="weights file, folder with a card, packed folder, or `demo`")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 that the weights file must have; default: the card's",
    )
    name: str | None = Field(
        None, description="the model's name in answers and metrics; default: the card's, or the file's"
    )
    allow_code: str | None = Field(
        None,
        pattern=f"^{_MODULE}(,{_MODULE})*$",
        description="modules, with commas between them, whose code a card may name as its architecture; "
        "without it a card can name none",
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
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; default: the cgroup's quota")
    max_batch: int | None = Field(
        None, ge=1, le=1024, description="most images in one forward pass; default: the plan's"
    )
    max_inflight: int = Field(256, ge=1, le=100_000, description="most images admitted at once")
    deadline: float = Field(10.0, gt=0, le=3600, description="request deadline in seconds")
    drain_seconds: float = Field(
        5.0, ge=0, le=3600, description="seconds of serving while not ready, after SIGTERM"
    )
    max_body: int = Field(20 * 2**20, ge=1, le=2**30, description="largest request body, bytes")
    max_pixels: int = Field(50_000_000, ge=1, le=1_000_000_000, description="largest image, pixels")
    decode_memory: int = Field(
        768 * 2**20,
        ge=2**20,
        le=2**40,
        description="most memory that all images take while they are decoded, bytes; others wait for theirs",
    )
    tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="largest difference of a probability from fp32's that a plan or a golden image may show",
    )
    tune_budget: float = Field(
        10.0, ge=0, le=3600, description="seconds that tuning may take at load; 0 takes the default plan"
    )
    plan: Path | None = Field(None, description="plan file written by `pthserve tune`")
    cache_dir: Path | None = Field(None, description="folder for compiled models and plans")
    golden: Literal["gate", "warn", "off"] = Field("gate", description="what a disagreeing golden image does")
    reload_interval: float = Field(
        0.0, ge=0, le=86_400, description="seconds between looks at the model file; 0: only on SIGHUP"
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
        None,
        json_schema_extra={"pattern": RATE},
        description="requests that one API key, or one client address without keys, may send, such as "
        "`100/second`",
    )
    trusted_proxies: str | None = Field(
        None,
        description="addresses or networks of proxies whose `X-Forwarded-For` names the client, such as "
        "`10.0.0.0/8, 192.0.2.7`; no proxy is trusted when unset",
    )
    allowed_hosts: str | None = Field(
        None,
        description="names that may stand in a request's `Host` header beside addresses and localhost, such "
        "as `cats.example, *.cats.example`, or `*` for any; default: none on a loopback `host`, else any",
    )
    cors_origins: str | None = Field(
        None,
        description="origins whose pages may call the service from a browser, such as "
        "`https://shop.example`, or `*` for any; no other site's when unset",
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
