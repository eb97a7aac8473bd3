"""Manifest: what may stand in a packed model's `manifest.json`; every field has a type and bounds."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pthserve.certainty import Inferred, Origin
from pthserve.errors import PackError
from pthserve.files.card_fields import MAX_SIDE, Preprocessing
from pthserve.images.spec import Spec
from pthserve.planning.plan import Plan, Trial

MAX_BYTES = 16 * 2**20
"""Of the file."""
FORMAT = 1
"""Of the folder; one that is larger was made by a later version."""

_QUOTED = 200
"""Characters of a message that may come from the file."""

Text = Annotated[str, Field(max_length=4096, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=1024, strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Size = Annotated[int, Field(ge=1, le=1024, strict=True)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
Positive = Annotated[float, Field(ge=0, strict=True)]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class PackedSpec(Preprocessing):
    """How an image is preprocessed; see `Spec`."""

    crop: tuple[Side, Side]
    assumed: Annotated[bool, Field(strict=True)]

    def spec(self) -> Spec:
        """The same as a Spec."""
        return Spec(**self.model_dump())


class PackedTrial(_Part):
    """One measured candidate; see `Trial`."""

    engine: Literal["openvino", "torch"]
    precision: Precision
    threads: Size
    batch: Size
    rate: Positive
    difference: Positive
    agrees: Annotated[bool, Field(strict=True)]
    note: Text = ""


class PackedPlan(_Part):
    """How to run the model; see `Plan`. A packed model is run by OpenVINO on a CPU."""

    engine: Literal["openvino"]
    precision: Precision
    device: Literal["cpu"]
    threads: Size
    max_batch: Size
    reason: Text
    digest: Text
    cpu: Text
    library: Text
    trials: Annotated[tuple[PackedTrial, ...], Field(max_length=1000)] = ()

    def plan(self) -> Plan:
        """The same as a Plan."""
        values = self.model_dump(exclude={"trials"})
        return Plan(**values, trials=tuple(Trial(**trial.model_dump()) for trial in self.trials))


class PackedGolden(_Part):
    """An image of the folder with a known answer; see `Golden`."""

    image: Name
    class_index: Count
    probability: Probability | None


class PackedInferred(_Part):
    """What was found out about the model; see `Inferred`."""

    subject: Name
    value: Text
    origin: Origin
    setting: Text

    def inferred(self) -> Inferred:
        """The same as an Inferred."""
        return Inferred(self.subject, self.value, self.origin, self.setting)


class Manifest(_Part):
    """A whole `manifest.json`; see `Packed` for what the fields mean."""

    format: Annotated[int, Field(ge=1, le=FORMAT, strict=True)]
    name: Name
    version: Name
    architecture: Name
    parameters: Count
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", strict=True)]
    labels: Annotated[tuple[Name, ...], Field(min_length=1)]
    spec: PackedSpec
    plan: PackedPlan
    golden: tuple[PackedGolden, ...]
    inferred: Annotated[tuple[PackedInferred, ...], Field(max_length=100)] = ()
    made_with: dict[Name, Text]


class _Head(BaseModel):
    """What any version's manifest has."""

    format: Annotated[int, Field(ge=1, strict=True)]
    made_with: dict[str, Any] = {}


def parse(data: bytes, file: Path) -> Manifest:
    """The manifest in `data`, the bytes of `file`.

    Raises:
        PackError: it is none, a field of it cannot be, or a later version wrote it.
    """
    try:
        head = _Head.model_validate_json(data)
        if head.format > FORMAT:
            maker = str(head.made_with.get("pthserve", ""))[:_QUOTED]
            raise PackError(
                f"{file.parent}: was packed by pthserve {maker}, in a format that this version cannot read; "
                "use that version, or pack the weights again"
            )
        found = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise PackError(f"{file}: {_first(error)}; pack the weights again") from None
    for number, one in enumerate(found.golden):
        if one.class_index >= len(found.labels):
            raise PackError(
                f"{file}: golden[{number}].class_index: is {one.class_index}, but there are "
                f"{len(found.labels)} labels; pack the weights again"
            )
    return found


def _first(error: ValidationError) -> str:
    """The first complaint: the field, and what is wrong."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"])
    words = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{place.removeprefix('.')[:_QUOTED] or 'it'}: {words[:_QUOTED]}"
