"""Segmentation: the class of each pixel, at the size of the image as sent."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pthserve.errors import MalformedRequest
from pthserve.files import regular_files
from pthserve.files.golden import Golden
from pthserve.metrics import count_area, count_labels
from pthserve.tasks.base import (
    ANY,
    Compared,
    Comparison,
    GoldenResult,
    Outputs,
    Parameter,
    Row,
    Selects,
    Size,
    Target,
    TensorForm,
    TensorValues,
    finite_or_infinite,
    labels_with_background,
)
from pthserve.tasks.class_maps import Scores
from pthserve.tasks.segments import NAME, Segmentation, SegmentationAnswer

SAME = 0.99
"""Minimum share of pixels with the same class at which two class maps count as the same."""
UNKNOWN = 255
"""Value of a pixel in a golden class map that may have any class, as in Pascal VOC."""

_MASKS = ("rle", "png", "none")
_PICTURES = ("map", "overlay")


@dataclass(frozen=True, slots=True)
class SegmentationTask(Selects):
    """The class of each pixel, from outputs that `Scores` reads; see `Task`.

    classes: number of classes. places: rows and columns of the scores, if the outputs do not state them.
    """

    classes: int
    places: tuple[int, int] | None = None

    name = NAME
    answer_model = SegmentationAnswer
    golden_kind = "class_map"
    explains = False
    has_classes = True
    query: tuple[Parameter, ...] = (
        Parameter(
            "masks",
            "how the JSON states the pixels: `rle`, COCO's compressed run lengths of each class; `png`, a "
            "class map as base64; `none`",
            {"type": "string", "enum": list(_MASKS), "default": "rle"},
        ),
        Parameter(
            "picture",
            "with `Accept: image/png`: `map`, the class indices with a palette; `overlay`, the classes over "
            "the image",
            {"type": "string", "enum": list(_PICTURES), "default": "map"},
        ),
    )

    def parameters(self) -> dict[str, Any]:
        """Number of classes, and the number of places; see `Task`."""
        return {"classes": self.classes, **({"places": list(self.places)} if self.places else {})}

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """One per class, of which there are `outputs`; class 0's may be left out, as the background's."""
        return labels_with_background(
            stated,
            outputs,
            f": state {outputs} labels, or {outputs - 1} if class 0 is the background",
        )

    def outputs(self, labels: tuple[str, ...]) -> int:
        """One per class and place; ANY if the number of places depends on the image; see `Task`."""
        return self.classes * self.places[0] * self.places[1] if self.places else ANY

    def describe(self, labels: tuple[str, ...]) -> str:
        """What it does; see `Task`."""
        return f"gives each pixel one of {len(labels)} classes"

    def answer(
        self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)
    ) -> Segmentation:
        """The classes of one image's pixels, which are computed when they are needed; see `Task`."""
        return Segmentation(labels, size, Scores.read(output, self.classes, self.places))

    def selection(self, query: Mapping[str, str]) -> Callable[[Segmentation], Segmentation]:
        """The form that a request asks for; see `Selects`."""
        masks, picture = query.get("masks", "rle"), query.get("picture", "map")
        if masks not in _MASKS:
            raise ValueError("`masks` must be `rle`, `png` or `none`")
        if picture not in _PICTURES:
            raise ValueError("`picture` must be `map` or `overlay`")
        return lambda answer: replace(answer, masks=masks, overlaid=picture == "overlay")

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The rows themselves."""
        return outputs

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """How the scores of each image differ from those of the reference; see `Task`.

        The difference is the largest difference of a probability, by softmax. The decision is the same if
        SAME of the places have the same class. It is clear if there are places whose most probable class
        leads by more than `margin`, and kept if SAME of those places have the same class.
        """
        rows = [self._compared(*each, margin) for each in zip(scores, reference, strict=True)]
        differences, same, clear, kept = zip(*rows, strict=True)
        return Comparison(
            finite_or_infinite(np.array(differences)), np.array(same), np.array(clear), np.array(kept)
        )

    def _compared(
        self, row: NDArray[np.float32], reference: NDArray[np.float32], margin: float
    ) -> tuple[float, bool, bool, bool]:
        """See `Comparison`, of one image: its difference, and whether it is the same, clear and kept."""
        theirs = _probabilities(Scores.read(reference, self.classes, self.places))
        second, first = np.partition(theirs, -2, axis=0)[-2:]
        sure = first - second > margin
        if not np.isfinite(row).all():
            return np.inf, False, bool(sure.any()), not sure.any()
        ours = _probabilities(Scores.read(row, self.classes, self.places))
        alike = ours.argmax(0) == theirs.argmax(0)
        kept = not sure.any() or alike[sure].mean() >= SAME
        return float(abs(ours - theirs).max()), bool(alike.mean() >= SAME), bool(sure.any()), bool(kept)

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """Whether all pixels but a share of `tolerance` have the known classes; see `Task`.

        A golden image may state its own share. Pixels that are UNKNOWN do not count, unless a class has that
        index.
        """
        return [
            self._check(self.answer(row, labels, size), one, tolerance)
            for row, one, size in zip(outputs, golden, sizes, strict=True)
        ]

    def _check(self, found: Segmentation, golden: Golden, tolerance: float) -> GoldenResult:
        assert golden.class_map is not None
        name = golden.class_map.name
        try:
            file = io.BytesIO(regular_files.read(golden.class_map, regular_files.IMAGE))
            with Image.open(file, formats=["PNG"]) as picture:
                if picture.size != found.size:
                    wide, high = picture.size
                    return GoldenResult(
                        1.0,
                        f"{name} has {wide} x {high} pixels, and the image {found.size[0]} x {found.size[1]}",
                    )
                if picture.mode not in ("P", "L", "I;16"):
                    return GoldenResult(
                        1.0, f"{name} is not a class map: its pixels are {picture.mode}, not class indices"
                    )
                known = np.asarray(picture)
        except (OSError, Image.DecompressionBombError, SyntaxError) as error:
            return GoldenResult(1.0, f"{name} cannot be read as PNG: {error}")
        counted = known != UNKNOWN if self.classes <= UNKNOWN else np.ones(known.shape, bool)
        if not counted.any():
            return GoldenResult(1.0, f"{name} has no pixel whose class is known")
        largest = int(known[counted].max())
        if largest >= self.classes:
            return GoldenResult(1.0, f"{name} has the class {largest}, but there are {self.classes} classes")
        agreement = float((found.class_map == known)[counted].mean())
        least = 1 - tolerance if golden.agreement is None else golden.agreement
        if agreement >= least:
            return GoldenResult(1 - agreement)
        return GoldenResult(
            1 - agreement,
            f"{100 * agreement:.2f} % of the pixels have the class that they have in {name}, and not "
            f"{100 * least:g} % or more",
        )

    def golden(self, answer: Segmentation) -> dict[str, Any]:
        """The class map as PNG; see `Task`."""
        return {"class_map": answer.png()}

    def same(self, answer: Segmentation, other: Segmentation) -> bool:
        """Whether at least SAME of the pixels have the same class; see `Task`."""
        return answer.segments.agreement(other.segments) >= SAME

    comparison_query = "masks=png"

    def compare(self, answer: Segmentation, fields: Mapping[str, Any]) -> Compared:
        """Whether SAME of the pixels have a class of the same index and label.

        The difference is the share of the others.
        """
        with Image.open(io.BytesIO(base64.b64decode(fields["class_map"])), formats=["PNG"]) as picture:
            if picture.size != answer.size:
                return Compared(False, 1.0)
            theirs = np.asarray(picture)
        labels = {one["class_index"]: one["label"] for one in fields["classes"]}
        ours = answer.class_map
        alike = [index for index in answer.class_indices if labels.get(index) == answer.labels[index]]
        share = float(((ours == theirs) & np.isin(ours, alike)).mean())
        return Compared(share >= SAME, 1 - share)

    def target(self, class_index: int) -> Target:
        """None: a heat map explains one class of an image."""
        raise NotImplementedError

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """The class of each pixel, and how many pixels each class has."""
        return (
            TensorForm("class_map", "UINT8" if classes <= UNKNOWN + 1 else "INT64", (-1, -1, -1)),
            TensorForm("pixels", "INT64", (-1, classes)),
        )

    def tensor(self, name: str, answers: Sequence[Segmentation]) -> TensorValues:
        """One of `tensor_forms`; see `Task`.

        Raises:
            MalformedRequest: class maps of images of different sizes do not fit one tensor.
        """
        if name == "pixels":
            return np.stack([answer.pixels for answer in answers])
        sizes = {answer.size for answer in answers}
        if len(sizes) > 1:
            shown = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:2])
            raise MalformedRequest(
                f"the class maps of images of different sizes, such as {shown}, do not fit one tensor; send "
                "one request for each size, or use /predict"
            )
        maps = np.stack([answer.class_map for answer in answers])
        return maps if maps.dtype == np.uint8 else maps.astype(np.int64)

    def count(self, answer: Segmentation) -> None:
        """Count the classes that have pixels, their areas, and the mean probability of the top class."""
        names = answer.names
        count_labels(names, answer.scores.confidence())
        for name, share in zip(names, answer.shares[answer.class_indices], strict=True):
            count_area(name, float(share))

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """The classes, with the areas that they have; see `Task`."""
        return [
            Row(one["label"], f"{100 * one['share']:.1f} %  {one['pixels']} pixels", one["share"])
            for one in answer["classes"]
        ]


def _probabilities(scores: Scores) -> NDArray[np.float32]:
    """Softmax over the classes: float32 (classes, rows, columns)."""
    exponents = np.exp(scores.values - scores.values.max(0))
    probabilities: NDArray[np.float32] = exponents / exponents.sum(0)
    return probabilities
