"""Settings: one frozen object; option, environment variable and chart value share one name.

`PTHSERVE_MAX_BATCH`, `--max-batch` and `.Values.settings.maxBatch` are the same setting. An option takes
precedence over the environment, the environment over the default. The table is docs/settings.md.
"""

import os
import re
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from pthserve.options import ModelOptions

VARIABLE = "PTHSERVE_{}"
"""The environment variable of a setting, from its name in capitals."""
_ADDRESS = r"^https?://[^/\s]+"
RATE = r"^([1-9]\d{0,8})\s*(?:/|\s+per\s+)\s*([1-9]\d{0,3})?\s*(second|minute|hour|day)s?$"
"""A rate: number of requests, number of units of time (1 if omitted), and the unit."""
_ROOT_PATH = r"^(/[A-Za-z0-9._~-]+)+$"
_HOST = r"(\*|(\*\.)?[\w-]+(\.[\w-]+)*)"
_ORIGIN = r"(\*|null|[a-z][a-z0-9+.-]*://[^/\s*]+)"


def listed(text: str | None) -> tuple[str, ...]:
    """Split a comma-separated setting; in lower case, since all such settings ignore case."""
    return tuple(part.strip().lower() for part in text.split(",")) if text is not None else ()


class Settings(ModelOptions):
    """The settings of the service: how its model is loaded and how it is served."""

    model: str = Field(
        "demo",
        description="weights file, folder with a model card, packed model, the address of one "
        "(docs/sources.md), or `demo`",
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
    listen: Literal["early", "ready"] = Field(
        "early",
        description="when to accept connections: `early`, to answer probes and show progress while the model "
        "loads, or `ready`, once requests can be answered; connections are refused until then",
    )
    max_inflight: int = Field(
        256, ge=1, le=100_000, description="maximum number of images accepted at the same time"
    )
    deadline: float = Field(10.0, gt=0, le=3600, description="request deadline in seconds")
    drain_seconds: float = Field(
        5.0, ge=0, le=3600, description="seconds to keep serving after SIGTERM, while reported as not ready"
    )
    max_body: int = Field(20 * 2**20, ge=1, le=2**30, description="maximum size of a request body in bytes")
    decode_memory: int = Field(
        768 * 2**20,
        ge=2**20,
        le=2**40,
        description="maximum memory in bytes for all images that are being decoded; further images wait",
    )
    cache_size: int = Field(
        4 * 2**30,
        ge=0,
        le=2**50,
        description="maximum size of the packed models in the cache in bytes; the ones that were not used "
        "for longest are removed",
    )
    no_cache: bool = Field(False, description="pack the model for each start, and keep nothing in the cache")
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
    compare_with: str | None = Field(
        None,
        json_schema_extra={"pattern": _ADDRESS},
        description="URL of another release of the service, such as `http://cats-stable:8000`, with whose "
        "answers those of this one are compared on live images (docs/rollouts.md); none when unset",
    )
    compare_share: float = Field(
        0.1, gt=0, le=1, description="fraction of live images that are compared with the other release"
    )
    compare_api_key: Path | None = Field(
        None,
        description="file like that of `api_keys`, whose first key is sent to the other release; no key is "
        "sent when unset",
    )
    feedback: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="number of latest answers to whose images a client may send the true class with "
        "POST /feedback; 0 turns the route off",
    )
    feedback_peers: str | None = Field(
        None,
        json_schema_extra={"pattern": _ADDRESS},
        description="URL whose host resolves to all pods, such as that of a headless Service, which are "
        "asked about an answer that this process does not know; none when unset",
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
    root_path: str | None = Field(
        None,
        json_schema_extra={"pattern": _ROOT_PATH},
        description="path prefix of a proxy that does not remove it from requests, such as `/cats`",
    )
    explain: Literal["on", "off"] = Field("on", description="whether POST /explain is available")
    torchserve_api: Literal["on", "off"] = Field(
        "off", description="whether TorchServe's routes /predictions and /ping are available"
    )
    planned_rate: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="requests per second up to which this service, or each pod, is planned to keep "
        "`planned_latency`, from `pthserve size`; shown on the page, in /info and as a metric; not a limit",
    )
    planned_latency: float | None = Field(
        None, gt=0, le=3600, description="planned 99th percentile of latency in seconds, shown likewise"
    )
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
        """Use the given values, and defaults for the others; raises ValidationError."""
        super().__init__(**given)

    @classmethod
    def read(
        cls, given: Mapping[str, Any], *, names: Collection[str] | None = None, **defaults: Any
    ) -> "Settings":
        """Read settings from the environment. An empty variable counts as unset.

        Args:
            given: Values that take precedence over the environment.
            names: The settings to read from the environment; all of them if None.
            defaults: Values for settings that are neither given nor in the environment.

        Raises:
            ValidationError: A value is not allowed.
        """
        names = cls.model_fields if names is None else names
        environment = {name: os.environ.get(VARIABLE.format(name.upper()), "") for name in names}
        return cls(**{**defaults, **{name: text for name, text in environment.items() if text}, **given})

    @field_validator("rate_limit")
    @classmethod
    def _check_rate(cls, value: str | None) -> str | None:
        if value is not None and not re.match(RATE, value):
            raise ValueError(
                "must be a number of requests per second, minute, hour or day, such as 100/second"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: str | None) -> str | None:
        for text in listed(value):
            try:
                ip_network(text)
            except ValueError as error:
                raise ValueError(
                    f"must be addresses or networks separated by commas, such as 10.0.0.0/8: {error}"
                ) from None
        return value

    @field_validator("allowed_hosts", "cors_origins")
    @classmethod
    def _check_names(cls, value: str | None, info: ValidationInfo) -> str | None:
        form, example = {
            "allowed_hosts": (_HOST, "host names without a port, such as cats.example or *.cats.example"),
            "cors_origins": (_ORIGIN, "origins without a path, such as https://shop.example"),
        }[str(info.field_name)]
        for text in listed(value):
            if not re.fullmatch(form, text):
                raise ValueError(f"must be {example}, separated by commas; {text!r} is not valid")
        return value

    @field_validator("otlp_endpoint", "compare_with", "feedback_peers")
    @classmethod
    def _check_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not re.match(_ADDRESS, value):
            example = "collector:4318" if info.field_name == "otlp_endpoint" else "cats-stable:8000"
            raise ValueError(f"must be an http or https address, such as http://{example}")
        return value

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and not re.match(_ROOT_PATH, value):
            raise ValueError("must be a path without a slash at its end, such as /cats")
        return value

    @classmethod
    def in_order(cls) -> dict[str, FieldInfo]:
        """Return the fields by name, in the order of docs/settings.md and of `pthserve serve --help`."""
        return {name: cls.model_fields[name] for name in _ORDER}


_ORDER = (
    "model",
    "sha256",
    "name",
    "architecture",
    "allow_code",
    "task",
    "host",
    "port",
    "metrics_port",
    "grpc_port",
    "listen",
    "device",
    "engine",
    "precision",
    "calibration",
    "weight_bits",
    "decode",
    "threads",
    "max_batch",
    "max_inflight",
    "deadline",
    "drain_seconds",
    "max_body",
    "max_pixels",
    "decode_memory",
    "validation",
    "tolerance",
    "max_accuracy_drop",
    "tune_budget",
    "plan",
    "cache_dir",
    "cache_size",
    "no_cache",
    "max_download",
    "require_signature",
    "golden",
    "reload_interval",
    "shadow",
    "shadow_agreement",
    "compare_with",
    "compare_share",
    "compare_api_key",
    "feedback",
    "feedback_peers",
    "api_keys",
    "rate_limit",
    "trusted_proxies",
    "allowed_hosts",
    "cors_origins",
    "root_path",
    "explain",
    "torchserve_api",
    "planned_rate",
    "planned_latency",
    "otlp_endpoint",
    "log_format",
    "log_level",
)
"""Grouped by subject; inheritance would put the fields of `ModelOptions` first."""
