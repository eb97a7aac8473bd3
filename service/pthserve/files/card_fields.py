"""Card fields: the fields of `model.yaml` with their meaning; docs/card.md has the table."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pthserve.files.card_values import (
    MAX_GOLDEN,
    MAX_SIDE,
    MAX_STATED,
    Activation,
    Channels,
    Finite,
    GoldenLabels,
    Labels,
    Name,
    Numbers,
    Section,
    Sha256,
    Share,
    Sides,
    Text,
    Word,
)
from pthserve.files.golden import IOU
from pthserve.files.output_fields import GraphOutputs, OutputFields, Outputs
from pthserve.files.stated_task import KINDS, PARAMETERS, NamedOutput, StatedTask, TaskName
from pthserve.images.spec import ChannelOrder, CropRounding, Interpolation, SideRule, Spec
from pthserve.text import quoted


class Preprocessing(Section):
    """How an image is preprocessed, as it was in training."""

    resize: Sides | None = Field(
        256, description="the shorter side after resizing, in pixels; or `[height, width]`; or `null`"
    )
    longest: Annotated[int, Field(ge=1, le=MAX_SIDE, strict=True)] | None = Field(
        None, description="maximum length of the longer side in pixels after resizing the shorter one"
    )
    crop: Sides | None = Field(
        224,
        description="side of the centre crop, in pixels; or `[height, width]`; or `null` for none",
    )
    interpolation: Interpolation = Field("bilinear", description="Pillow's name of the resizing filter")
    antialias: bool = Field(
        True,
        description="`false`: resize as torchvision does with a tensor without antialiasing; "
        "bilinear and bicubic only",
    )
    rounded: bool = Field(
        True,
        description="`false`: keep fractions, as torchvision's detectors do; bilinear without antialias only",
    )
    pad: Annotated[int, Field(ge=0, le=255, strict=True)] | None = Field(
        None,
        description="detection: keep the shape of the image within `resize: [height, width]`, and fill the "
        "borders with this grey level, as YOLO's letterbox does with 114",
    )
    sides: SideRule = Field(
        "torchvision",
        description="how both sides are rounded if `longest` is stated: as `torchvision`'s detectors do it, "
        "or Hugging Face's `detr` or `yolos`",
    )
    exif: bool = Field(False, description="`true`: turn an image upright according to its EXIF orientation")
    channel_order: ChannelOrder = Field(
        "rgb", description="`bgr`: blue first, as OpenCV reads images; `mean` and `std` are in the same order"
    )
    crop_rounding: CropRounding = Field(
        "even",
        description="where a crop starts if its middle is between two pixels: at the `even` number, "
        "as in torchvision; `down`, as in Hugging Face's libraries",
    )
    mean: Annotated[tuple[Share, ...], Channels] = Field(
        (0.485, 0.456, 0.406), description="subtracted from values in 0 to 1; three numbers, or one for grey"
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Channels] = Field(
        (0.229, 0.224, 0.225), description="divisor of the values after that; as many numbers"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if ("resize" in self.model_fields_set) != ("crop" in self.model_fields_set):
            raise ValueError("set both `resize` and `crop` (`resize: null` for no resizing)")
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ValueError("`mean` and `std` must both have three numbers or both have one")
        if not self.antialias and self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError("`antialias: false` is defined for bilinear and bicubic only")
        if not self.rounded and (self.antialias or self.interpolation != "bilinear"):
            raise ValueError("`rounded: false` is defined for bilinear without antialias only")
        if self.pad is not None and (not isinstance(self.resize, tuple) or self._crop() != self.resize):
            raise ValueError("`pad` needs `resize: [height, width]` and the same `crop`")
        if self.pad is not None and not self.rounded:
            raise ValueError("`pad` is not defined with `rounded: false`")
        if self.longest is not None and not isinstance(self.resize, int):
            raise ValueError("`longest` needs `resize` with a number of pixels, that of the shorter side")
        if self.channel_order == "bgr" and len(self.mean) == 1:
            raise ValueError(
                "`channel_order: bgr` needs colour images, but `mean` has one number, as for grey images"
            )
        return self

    def _crop(self) -> tuple[int, int] | None:
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    def spec(self) -> Spec:
        """Return the same as a Spec; `assumed` if the sizes are left out."""
        values = self.model_dump()
        if isinstance(self.crop, int):
            values["crop"] = (self.crop, self.crop)
        if self.crop is None:
            del values["crop"]
            return Spec.uncropped(**values)
        return Spec(**values, assumed="crop" not in self.model_fields_set)


class FirstLayer(Section):
    """What no file tells of a first convolution that was replaced, as for grey images or for small ones."""

    stride: Annotated[int, Field(ge=1, le=64, strict=True)] | None = Field(
        None, description="the stride of the convolution on the image; default: the architecture's"
    )
    padding: Annotated[int, Field(ge=0, le=64, strict=True)] | None = Field(
        None, description="its padding; default: the architecture's"
    )
    pool: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="`false`: no max pooling after it; default: the architecture's"
    )


class Head(Section):
    """What no file tells of a head that was replaced."""

    activation: Activation = Field(
        "relu", description="the activation between its linear layers; `none` for no activation"
    )
    slope: Annotated[float, Field(gt=0, le=1)] = Field(0.01, description="the negative slope of `leaky_relu`")


class GoldenObject(Section):
    """An object in a golden image."""

    box: tuple[Finite, Finite, Finite, Finite] = Field(description="left, top, right, bottom, in pixels")
    class_index: Annotated[int, Field(ge=0, strict=True)] | None = Field(None, description="its class;")
    label: Text | None = Field(None, description="or the label of that class")
    score: Share | None = Field(None, description="its expected score; not checked if left out")
    iou: Share = Field(IOU, description="minimum intersection over union with the box of the detection")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.class_index is None) == (self.label is None):
            raise ValueError("needs either `class_index` or `label`")
        if self.box[0] > self.box[2] or self.box[1] > self.box[3]:
            raise ValueError("`box` must be left, top, right and bottom, in this order")
        return self


class GoldenImage(Section):
    """An image with a known answer."""

    image: Text = Field(description="the image file")
    class_index: Annotated[int, Field(ge=0, strict=True)] | None = Field(
        None, description="the expected class;"
    )
    label: Text | None = Field(None, description="or the label of that class")
    probability: Share | None = Field(None, description="its expected probability; not checked if left out")
    labels: GoldenLabels | None = Field(
        None, max_length=MAX_STATED, description="multilabel: all labels that apply, or their indices"
    )
    probabilities: Numbers | None = Field(
        None, description="multilabel: probabilities, in the order of the labels, or by label"
    )
    values: Numbers | None = Field(
        None, description="regression: values, in the order of the outputs, or by their names"
    )
    vector: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=MAX_STATED)] | None = Field(
        None, description="embedding: the vector"
    )
    boxes: tuple[GoldenObject, ...] | None = Field(
        None, max_length=MAX_STATED, description="detection: all objects in the image"
    )
    class_map: Text | None = Field(
        None,
        description="segmentation: a PNG file of the size of the image, whose pixels are class indices; 255: "
        "any class",
    )
    agreement: Share | None = Field(
        None,
        description="segmentation: the least share of pixels with the class of `class_map`; default: all but "
        "the tolerance",
    )

    recorded: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="`true`: `pthserve golden` recorded the answer; it is then not evidence for assumptions",
    )

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        stated = [
            kind
            for kind, fields in _ANSWERS.items()
            if any(getattr(self, name) is not None for name in fields)
        ]
        if len(stated) > 1:
            first, second = (
                [name for name in _ANSWERS[kind] if getattr(self, name) is not None] for kind in stated[:2]
            )
            raise ValueError(f"`{first[0]}` and `{second[0]}` are answers of different tasks; state one")
        if stated in ([], ["class"]) and (self.class_index is None) == (self.label is None):
            raise ValueError("needs either `class_index` or `label`")
        return self

    @property
    def kind(self) -> str:
        """See `Golden.kind`."""
        return next(
            kind
            for kind, fields in _ANSWERS.items()
            if any(getattr(self, name) is not None for name in fields)
        )


_ANSWERS = {
    "class": ("class_index", "label", "probability"),
    "labels": ("labels", "probabilities"),
    "values": ("values",),
    "vector": ("vector",),
    "boxes": ("boxes",),
    "class_map": ("class_map", "agreement"),
}
"""The fields of a golden image's answer, by `Golden.kind`."""


class Fields(Section):
    """A whole `model.yaml`. Paths start at its folder."""

    name: Name | None = Field(
        None, description="the model's name in answers, metrics and URLs; default: the folder's or the file's"
    )
    version: Word = Field("1", description="the model's version")
    weights: Text | None = Field(
        None, description="the weights file; may be left out if the folder has only one"
    )
    sha256: Sha256 | None = Field(None, description="expected SHA-256 of the weights file")
    container: Text | None = Field(
        None,
        description="the key of the state dict in the weights file, dotted if nested; default: inferred",
    )
    architecture: Text | None = Field(
        None,
        description="a name such as `resnet50` or `timm/vit_tiny_patch16_224`, or "
        "`package.module:callable`; default: inferred from the weights",
    )
    kwargs: dict[str, Any] = Field({}, description="keyword arguments of the architecture")
    labels: Labels | None = Field(
        None,
        description="one per class: a list, a mapping of index to label or label to index, or the name of a "
        "file; see below; default: those in the weights file, or the indices",
    )
    task: TaskName | None = Field(
        None,
        description="kind of answer: `classification`, `multilabel`, `binary`, `regression`, "
        "`embedding`, `detection` or `segmentation`; default: inferred from the file, otherwise "
        "classification",
    )
    threshold: Share | None = Field(
        None,
        description="multilabel, binary and detection: the minimum probability or score for a label, "
        "the positive class or an object; default: 0.5; 0.25 for YOLO",
    )
    outputs: Outputs | None = Field(
        None,
        description="regression: a list of the values, in their order; detection and segmentation with an "
        "exported graph: a mapping that says what its outputs are",
    )
    normalize: bool | None = Field(
        None, description="embedding: whether vectors are scaled to a length of 1; default: `false`"
    )
    first_layer: FirstLayer | None = Field(
        None, description="the architecture's first convolution, if it was replaced"
    )
    head: Head | None = Field(None, description="the architecture's head, if it was replaced")
    preprocessing: Preprocessing | None = Field(
        None,
        description="how an image is preprocessed; default: that of the library's own weights of the "
        "architecture",
    )
    golden: tuple[GoldenImage, ...] = Field(
        (), max_length=MAX_GOLDEN, description="images with known answers"
    )

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        for name, tasks in self._parameters().items():
            if self.task not in (None, *tasks):
                theirs = " or ".join(f"`task: {task}`" for task in tasks)
                raise ValueError(f"`{name}` is for {theirs}, but the task is {self.task}")
        wanted: TaskName | None = "classification" if self.task == "binary" else self.task
        for number, image in enumerate(self.golden):
            of_label = wanted == "multilabel" and image.probability is not None  # one label's probability
            if wanted not in (None, KINDS[image.kind]) and not of_label:
                raise ValueError(
                    f"golden[{number}] states an answer of `task: {KINDS[image.kind]}`, but the task is "
                    f"{self.task}"
                )
        names = [output.name for output in self._values()]
        if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
            raise ValueError(f"`outputs` has the name {quoted(repr(twice))} twice")
        if len(self._implied()) > 1 and self.task is None:
            fields = " and ".join(f"`{field}`" for field in self._implied().values())
            raise ValueError(f"{fields} are of different tasks; state the `task`")
        return self

    def _parameters(self) -> dict[str, tuple[TaskName, ...]]:
        """Return the parameters that are stated, each with the tasks that have it."""
        stated = {name: tasks for name, tasks in PARAMETERS.items() if getattr(self, name) is not None}
        if isinstance(self.outputs, GraphOutputs):
            stated["outputs"] = ("detection",) if self.outputs.of_boxes else ("segmentation", "detection")
        return stated

    def _values(self) -> tuple[OutputFields, ...]:
        """Return the outputs of a regression."""
        return self.outputs if isinstance(self.outputs, tuple) else ()

    def _implied(self) -> dict[TaskName, str]:
        """Return the tasks that parameters and golden images imply, each with the field that implies it."""
        stated = self._parameters()
        certain = {tasks[0] for tasks in stated.values() if len(tasks) == 1}
        implied = {
            tasks[0]: name
            for name, tasks in stated.items()
            if len(tasks) == 1 or not certain.intersection(tasks)
        }
        for number, image in enumerate(self.golden):
            implied.setdefault(KINDS[image.kind], f"golden[{number}]")
        return implied

    def stated_task(self) -> StatedTask:
        """Return what the card states about the task."""
        return StatedTask(
            name=self.task,
            implied=next(iter(self._implied()), None),
            threshold=self.threshold,
            outputs=tuple(
                NamedOutput(output.name, output.unit or "", output.range) for output in self._values()
            ),
            normalize=bool(self.normalize),
            graph=self.outputs.stated() if isinstance(self.outputs, GraphOutputs) else None,
        )


def preprocessing_fields(spec: Spec) -> dict[str, Any]:
    """Return `spec` as the fields of `preprocessing`, as plain values for YAML."""
    values = {name: value for name, value in spec.to_dict().items() if name in Preprocessing.model_fields}
    height, width = spec.crop
    values["crop"] = None if spec.whole else height if height == width else spec.crop
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
