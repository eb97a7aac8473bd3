"""V2 answers: the response models of the Open Inference Protocol, for the schema.

Responses are not made from these models; tests check the responses against them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(defer_build=True, protected_namespaces=())


class Live(_Answer):
    """The server is live."""

    live: Literal[True]


class Ready(_Answer):
    """The server is ready."""

    ready: Literal[True]


class ModelReady(_Answer):
    """The model is ready."""

    name: str
    ready: Literal[True]


class ServerMetadata(_Answer):
    """The server, and the extensions of the protocol that it supports."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Answer):
    """An input or an output of the model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any number")


class ModelMetadata(_Answer):
    """The model's inputs, of which a request must have one, and its outputs."""

    name: str
    versions: list[str] | None = Field(None, description="left out if the model has no version")
    platform: str = Field(description="the library that runs the model")
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Tensor(_Answer):
    """An output of an inference."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = Field(None, description="the elements, flat; left out if they are binary")
    parameters: dict[str, Any] | None = Field(
        None, description="`binary_data_size`: the bytes of this tensor after the JSON"
    )


class Inferred(_Answer):
    """The outputs of an inference."""

    model_name: str
    model_version: str | None = Field(None, description="left out if the model has no version")
    id: str | None = Field(None, description="as in the request")
    outputs: list[Tensor]


class Duration(_Answer):
    """A number of durations and their sum."""

    count: int
    ns: int = Field(description="nanoseconds")


class InferenceDurations(_Answer):
    """Durations per request (`success`, `fail`) and per image (the others)."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchDurations(_Answer):
    """Durations of the forward passes with one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class OneModelStatistics(_Answer):
    """Counts and durations since the service started, warm-up included."""

    name: str
    version: str | None = Field(None, description="left out if the model has no version")
    last_inference: int = Field(description="milliseconds since 1970")
    inference_count: int = Field(description="images")
    execution_count: int = Field(description="forward passes")
    inference_stats: InferenceDurations
    batch_stats: list[BatchDurations]


class ModelStatistics(_Answer):
    """Statistics of the models; a service has one."""

    model_stats: list[OneModelStatistics]


class State(_Answer):
    """A model and its state."""

    name: str
    version: str | None = Field(None, description="left out if the model has no version")
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is unavailable; empty if it is ready")
