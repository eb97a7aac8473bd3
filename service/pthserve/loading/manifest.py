"""Manifest: what may stand in a packed model's `manifest.json`; every field has a type and bounds."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pthserve.certainty import Inferred, Origin
from pthserve.engines.quantized_graph import Quantization
from pthserve.errors import CardError, PackError
from pthserve.files.card_fields import Preprocessing
from pthserve.files.card_values import MAX_SIDE, MAX_STATED
from pthserve.files.golden import IOU, Golden, GoldenBox
from pthserve.files.output_fields import MAX_OBJECTS
from pthserve.files.stated_task import NamedOutput, StatedTask, TaskName
from pthserve.images.spec import Spec
from pthserve.planning.agreement import Evidence
from pthserve.planning.plan import Plan, Trial
from pthserve.tasks.base import Task, finds
from pthserve.tasks.choice import make
from pthserve.tasks.classification import CLASSIFICATION
from pthserve.tasks.detection import THRESHOLD, DetectionTask
from pthserve.tasks.objects import Table
from pthserve.tasks.segmentation import SegmentationTask

MAX_BYTES = 16 * 2**20
"""Of the file."""
FORMAT = 5
"""Of the folder; a larger one was made by a later version. 2 added `task`, 3 a threshold of `binary`, 4
`int8` and the plan's `evidence`, 5 the tasks `detection` and `segmentation` with their golden images, and
images that are not cropped."""

_QUOTED = 200
"""Characters of a message that may come from the file."""

Text = Annotated[str, Field(max_length=4096, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=1024, strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Size = Annotated[int, Field(ge=1, le=1024, strict=True)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Difference = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(ge=0, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class PackedSpec(Preprocessing):
    """How an image is preprocessed; see `Spec`."""

    crop: tuple[Side, Side]
    assumed: Annotated[bool, Field(strict=True)]
    whole: Annotated[bool, Field(strict=True)] = False

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


class PackedEvidence(_Part):
    """How an engine compares with fp32 PyTorch; see `Evidence`."""

    engine: Literal["openvino", "torch"]
    precision: Precision
    crops: Annotated[int, Field(ge=1, lt=2**31, strict=True)]
    photos: Annotated[int, Field(ge=1, lt=2**31, strict=True)]
    source: Text
    mean: Difference
    bound: Difference
    p95: Difference
    largest: Difference
    same: Share | None = None
    clear: Count | None = None
    kept: Count | None = None
    reference_accuracy: Share | None = None
    accuracy: Share | None = None
    digest: Text = ""
    cpu: Text = ""
    library: Text = ""

    def evidence(self) -> Evidence:
        """The same as an Evidence."""
        return Evidence(**self.model_dump())


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
    task: Text = "classification"
    trials: Annotated[tuple[PackedTrial, ...], Field(max_length=1000)] = ()
    evidence: Annotated[tuple[PackedEvidence, ...], Field(max_length=100)] = ()

    def plan(self) -> Plan:
        """The same as a Plan."""
        return Plan(
            **self.model_dump(exclude={"trials", "evidence"}),
            trials=tuple(Trial(**trial.model_dump()) for trial in self.trials),
            evidence=tuple(one.evidence() for one in self.evidence),
        )


class PackedQuantization(_Part):
    """What of the graph at int8 is; see `Quantization`."""

    weight_bits: Annotated[int, Field(ge=7, le=8, strict=True)]
    layers: Count
    floating: Annotated[dict[Name, Count], Field(max_length=100)]
    share: Share
    rest: Literal["bf16", "fp32"]
    photos: Count
    whole: Text

    def quantization(self) -> Quantization:
        """The same as a Quantization."""
        return Quantization(**self.model_dump())


class PackedBox(_Part):
    """An object in a golden image; see `GoldenBox`."""

    class_index: Count | None = None
    box: tuple[Finite, Finite, Finite, Finite]
    score: Probability | None = None
    iou: Share = IOU
    label: Text | None = None

    def box_of(self) -> GoldenBox:
        """The same as a GoldenBox."""
        return GoldenBox(**self.model_dump())


class PackedGolden(_Part):
    """An image of the folder with a known answer; see `Golden`."""

    image: Name
    class_index: Count | None = None
    probability: Probability | None = None
    labels: tuple[Count, ...] | None = None
    probabilities: tuple[Probability | None, ...] | None = None
    values: tuple[Finite | None, ...] | None = None
    vector: tuple[Finite, ...] | None = None
    boxes: Annotated[tuple[PackedBox, ...], Field(max_length=MAX_STATED)] | None = None
    class_map: Name | None = None
    agreement: Share | None = None

    def golden(self, folder: Path, sha256: str) -> Golden:
        """The same as a Golden, of the image in `folder` with this SHA-256."""
        return Golden(
            folder / self.image,
            sha256=sha256,
            boxes=None if self.boxes is None else tuple(box.box_of() for box in self.boxes),
            class_map=None if self.class_map is None else folder / self.class_map,
            **self.model_dump(exclude={"image", "boxes", "class_map"}),
        )


class PackedOutput(_Part):
    """An output of a regression; see `NamedOutput`."""

    name: Name
    unit: Text = ""
    range: tuple[Finite, Finite] | None = None


class PackedTask(_Part):
    """The task with its parameters; see `tasks.choice.task_fields`."""

    name: TaskName
    threshold: Probability | None = None
    outputs: Annotated[tuple[PackedOutput, ...], Field(max_length=MAX_STATED)] = ()
    normalize: Annotated[bool, Field(strict=True)] = False
    dimensions: Annotated[int, Field(ge=1, lt=2**31, strict=True)] | None = None
    most: Annotated[int, Field(ge=1, le=2**20, strict=True)] | None = None
    mask: Annotated[int, Field(ge=0, le=1024, strict=True)] = 0
    keypoints: Annotated[int, Field(ge=0, le=MAX_STATED, strict=True)] = 0
    keypoint_names: Annotated[tuple[Text, ...], Field(max_length=MAX_STATED)] = ()
    classes: Annotated[int, Field(ge=1, le=2**16, strict=True)] | None = None
    overlap: Share = 1.0
    objects: Annotated[int, Field(ge=1, le=MAX_OBJECTS, strict=True)] | None = None
    places: tuple[Side, Side] | None = None

    def task(self, labels: int) -> Task:
        """The same as a Task, of a model with so many labels; raises CardError."""
        if self.name == "segmentation":
            if self.classes != labels:
                raise CardError(f"there are {labels} labels, but `classes` is {self.classes}")
            return SegmentationTask(labels, self.places)
        if self.name == "detection":
            if self.most is None or len(self.keypoint_names) not in (0, self.keypoints):
                raise CardError(
                    "`most` is missing, or there are more or fewer `keypoint_names` than `keypoints`"
                )
            table = Table(
                self.most, self.mask, self.keypoints, self.keypoint_names, self.overlap, self.objects
            )
            return DetectionTask(table, THRESHOLD if self.threshold is None else self.threshold)
        stated = StatedTask(
            threshold=self.threshold,
            outputs=tuple(NamedOutput(**output.model_dump()) for output in self.outputs),
            normalize=self.normalize,
        )
        outputs = {"embedding": self.dimensions or 0, "binary": 1}.get(self.name, labels)
        return make(self.name, stated, outputs)


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
    labels: tuple[Name, ...]
    task: PackedTask | None = None
    spec: PackedSpec
    plan: PackedPlan
    int8: PackedQuantization | None = None
    golden: tuple[PackedGolden, ...]
    inferred: Annotated[tuple[PackedInferred, ...], Field(max_length=100)] = ()
    made_with: dict[Name, Text]

    def served_task(self) -> Task:
        """The task; raises CardError where its parameters do not fit."""
        if self.task is None:
            return CLASSIFICATION
        task = self.task.task(len(self.labels))
        spec = self.spec.spec()
        return replace(task, spec=spec) if isinstance(task, DetectionTask) and spec.pad is not None else task


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
    try:
        task = found.served_task()
        if not finds(task):
            task.labels(found.labels, task.outputs(found.labels))
    except (CardError, ValueError) as error:
        raise PackError(f"{file}: labels and task: {error}; pack the weights again") from None
    if not found.labels and task.name != "embedding":
        raise PackError(f"{file}: labels: there are none; pack the weights again")
    needed = "class_index" if task.golden_kind == "class" else task.golden_kind
    for number, one in enumerate(found.golden):
        if getattr(one, needed) is None:
            raise PackError(f"{file}: golden[{number}].{needed}: is missing; pack the weights again")
        if one.class_index is not None and one.class_index >= len(found.labels):
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
