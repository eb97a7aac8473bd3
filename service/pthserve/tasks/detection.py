"""Detection: the objects in an image, each with a box, a label and a score; masks and keypoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.files.golden import Golden, GoldenBox
from pthserve.images.spec import Spec
from pthserve.metrics import count_labels
from pthserve.tasks.base import (
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
    number,
)
from pthserve.tasks.objects import NAME, DetectionAnswer, Detections, Table, closest

THRESHOLD = 0.5
"""Minimum score of an object in an answer, unless the card or the request states another."""
SAME = 0.5
"""Minimum intersection over union of two boxes of the same object; the lowest that COCO evaluates."""
CLOSE = 0.9
"""Minimum intersection over union at which an engine's box agrees with the reference's."""
FLOOR = 0.1
"""Detections with a lower score are not compared: rounding decides which of them are suppressed."""
THIN = 1e-3
"""Detections with a narrower box, as a share of the image's width or height, are not compared: rounding
decides by how much they overlap. Boxes outside of the image are that narrow once they are clipped to it."""


@dataclass(frozen=True, slots=True)
class DetectionTask(Selects):
    """Objects, float32 (n, outputs): a table for each image; see `Task`.

    threshold: minimum score of an object in an answer, unless the request states another.
    spec: how images are preprocessed, if boxes are not in shares of the image as sent.
    """

    table: Table
    threshold: float = THRESHOLD
    spec: Spec | None = None

    name = NAME
    answer_model = DetectionAnswer
    golden_kind = "boxes"
    explains = False
    has_classes = True

    @property
    def query(self) -> tuple[Parameter, ...]:
        """Minimum score, maximum number, and whether there are masks; see `Selects`."""
        return (
            Parameter(
                "threshold",
                "the minimum score of a listed object",
                {"type": "number", "minimum": 0, "maximum": 1, "default": self.threshold},
            ),
            Parameter(
                "max",
                f"the maximum number of objects to list, highest score first; there are at most {self.most}",
                {"type": "integer", "minimum": 1},
            ),
            Parameter(
                "masks",
                "`none` leaves the masks out; `rle` gives COCO's compressed run lengths",
                {"type": "string", "enum": ["rle", "none"], "default": "rle"},
            ),
        )

    @property
    def most(self) -> int:
        """Maximum number of objects that the model finds in an image."""
        return min(self.table.most, self.table.objects or self.table.most)

    def parameters(self) -> dict[str, Any]:
        """The shape of the table, and the threshold; see `Task`."""
        table = asdict(self.table)
        for name, usual in (("overlap", 1.0), ("objects", None)):
            if table[name] == usual:
                del table[name]
        return {
            **table,
            "keypoint_names": list(self.table.keypoint_names),
            "threshold": self.threshold,
        }

    def labels(self, stated: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
        """One per class, of which there are `outputs`; class 0's may be left out, as the background's."""
        return labels_with_background(
            stated,
            outputs,
            f", with class 0 for the background: state {outputs - 1} labels, or {outputs} with the "
            "background's first",
        )

    def outputs(self, labels: tuple[str, ...]) -> int:
        """The numbers of the whole table; see `Task`."""
        return self.table.outputs

    def describe(self, labels: tuple[str, ...]) -> str:
        """What it finds; see `Task`."""
        kinds = [
            "boxes",
            *["masks"] * bool(self.table.mask),
            *[f"{self.table.keypoints} keypoints"] * bool(self.table.keypoints),
        ]
        return f"finds objects of {len(labels)} classes, with {' and '.join(kinds)}"

    def answer(self, output: NDArray[np.float32], labels: tuple[str, ...], size: Size = (1, 1)) -> Detections:
        """The objects of one image; see `Task`."""
        return self.table.read(output, labels, size, self.threshold, spec=self.spec)

    def selection(self, query: Mapping[str, str]) -> Callable[[Detections], Detections]:
        """The objects that a request asks for; see `Selects`."""
        threshold = number(query, "threshold", 0, 1)
        most = number(query, "max", 1, 10**9, whole=True)
        masks = query.get("masks", "rle")
        if masks not in ("rle", "none"):
            raise ValueError("`masks` must be `rle` or `none`")
        count = None if most is None else int(most)
        return lambda answer: answer.at(threshold, count, masks=masks == "rle")

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """The tables themselves."""
        return outputs

    def agree(self, scores: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> Comparison:
        """How the objects of each image differ from those of the reference; see `Task`.

        Objects as narrow as THIN do not count. Two objects match if they have the same class and an
        intersection over union of at least CLOSE. Their difference is that of their scores, or that of their
        masks if it is larger. If an object above FLOOR has no match, the difference is its score minus FLOOR.
        The decision is the same if each object of the answer has a match. An object is clear if its score is
        at least half of `margin` above the threshold.
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
        ours, theirs = (self.table.read(one, (), (1, 1)) for one in (row, reference))
        sure = np.float32(self.threshold + margin / 2)
        clear = bool((theirs.scores[_wide(theirs)] >= sure).any())
        if not np.isfinite(row).all():
            return np.inf, False, clear, not clear
        worst, same, kept = 0.0, True, True
        for these, those in ((theirs, ours), (ours, theirs)):
            for index in np.flatnonzero((these.scores > FLOOR) & _wide(these)):
                score = these.scores[index]
                match, overlap = closest(those, these.boxes[index], int(these.class_indices[index]))
                if match is not None and overlap >= CLOSE:
                    worst = max(worst, self._difference(these, int(index), those, match))
                    continue
                worst = max(worst, float(score) - FLOOR)
                same = same and score < self.threshold
                kept = kept and not (these is theirs and score >= sure)
        return worst, same, clear, kept

    def _difference(self, these: Detections, index: int, those: Detections, match: int) -> float:
        """By how much two objects differ: in their scores, or in the values of their masks on average."""
        difference = abs(float(these.scores[index]) - float(those.scores[match]))
        if these.small_masks is not None and those.small_masks is not None:
            apart = np.abs(these.small_masks[index] - those.small_masks[match]).mean()
            difference = max(difference, float(apart))
        return difference

    def check_golden(
        self,
        outputs: Outputs,
        golden: Sequence[Golden],
        labels: tuple[str, ...],
        tolerance: float,
        sizes: Sequence[Size] = (),
    ) -> list[GoldenResult]:
        """Whether the images have the objects that are known, and no others; see `Task`.

        A known object is found if there is an object of its class with an intersection over union of at
        least its `iou`, and with its score if that is known. Objects within `tolerance` of the threshold may
        be missing.
        """
        return [
            self._check(self.answer(row, labels, size), one, tolerance)
            for row, one, size in zip(outputs, golden, sizes, strict=True)
        ]

    def _check(self, found: Detections, golden: Golden, tolerance: float) -> GoldenResult:
        assert golden.boxes is not None
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            return GoldenResult(np.inf, "its outputs are not numbers")
        possible = found.at(max(0.0, self.threshold - tolerance))
        left, worst = set(range(len(possible))), 0.0
        for one in golden.boxes:
            wanted = one.class_index
            if one.label is not None:
                wanted = found.labels.index(one.label) if one.label in found.labels else None
            if wanted is None or wanted >= len(found.labels):
                unknown = wanted if one.label is None else repr(one.label)
                return GoldenResult(worst, f"there is no class {unknown} among {len(found.labels)}")
            name = found.labels[wanted]
            match, overlap = closest(possible, np.array(one.box, np.float32), wanted, left)
            if match is None or overlap < one.iou:
                lacking = f"the closest overlaps it by {overlap:.2f}, less than {one.iou}"
                return GoldenResult(worst, f"no {name} at {_shown(one.box)}: {lacking}")
            left.discard(match)
            if one.score is not None:
                difference = abs(float(possible.scores[match]) - one.score)
                worst = max(worst, difference)
                if difference > tolerance:
                    reason = f"the {name} at {_shown(one.box)} has the score {possible.scores[match]:.3f}, "
                    return GoldenResult(worst, f"{reason}and not {one.score} ± {tolerance}")
        for index in sorted(left):
            if possible.scores[index] >= self.threshold + tolerance:
                return GoldenResult(
                    worst,
                    f"a {possible.names[index]} at {_shown(possible.boxes[index])} that should not be "
                    f"there, with the score {possible.scores[index]:.3f}",
                )
        return GoldenResult(worst)

    def golden(self, answer: Detections) -> dict[str, Any]:
        """The boxes, with classes and scores; see `Task`."""
        return {
            "boxes": tuple(
                GoldenBox(int(index), tuple(round(float(side), 2) for side in box), round(float(score), 6))
                for index, box, score in zip(answer.class_indices, answer.boxes, answer.scores, strict=True)
            )
        }

    def same(self, answer: Detections, other: Detections) -> bool:
        """Whether each has the objects of the other, at SAME; see `Task`."""
        return len(answer) == len(other) and all(
            closest(those, box, int(index))[1] >= SAME
            for these, those in ((answer, other), (other, answer))
            for box, index in zip(these.boxes, these.class_indices, strict=True)
        )

    comparison_query = "masks=none"

    def compare(self, answer: Detections, fields: Mapping[str, Any]) -> Compared:
        """As `same`, with the same labels.

        The difference is the largest one of the scores of two objects that match at SAME; an object without a
        match counts with its score.
        """
        objects = fields["detections"]
        other = replace(
            answer,
            boxes=np.array([one["box"] for one in objects], np.float32).reshape(-1, 4),
            scores=np.array([one["score"] for one in objects], np.float32),
            class_indices=np.array([one["class_index"] for one in objects], np.int64),
        )
        known = dict(zip(answer.class_indices.tolist(), answer.names, strict=True))
        agrees = self.same(answer, other) and all(
            known.get(one["class_index"]) == one["label"] for one in objects
        )
        worst = 0.0
        for these, those in ((answer, other), (other, answer)):
            for score, box, index in zip(these.scores, these.boxes, these.class_indices, strict=True):
                match, overlap = closest(those, box, int(index))
                matched = match is not None and overlap >= SAME
                worst = max(worst, abs(float(score) - (float(those.scores[match]) if matched else 0.0)))
        return Compared(agrees, worst)

    def target(self, class_index: int) -> Target:
        """None: a heat map explains one class of an image."""
        raise NotImplementedError

    def tensor_forms(self, classes: int) -> tuple[TensorForm, ...]:
        """The objects of all images of a request, one after the other, each with the index of its image."""
        forms = [
            TensorForm("boxes", "FP32", (-1, 4)),
            TensorForm("scores", "FP32", (-1,)),
            TensorForm("class_index", "INT64", (-1,)),
            TensorForm("label", "BYTES", (-1,)),
            TensorForm("image_index", "INT64", (-1,)),
        ]
        if self.table.keypoints:
            forms.append(TensorForm("keypoints", "FP32", (-1, self.table.keypoints, 3)))
        if self.table.mask:
            forms.append(TensorForm("masks", "BYTES", (-1,)))
        return tuple(forms)

    def tensor(self, name: str, answers: Sequence[Detections]) -> TensorValues:
        """One of `tensor_forms`; masks as COCO's compressed run lengths; see `Task`."""
        match name:
            case "label":
                return [label.encode() for answer in answers for label in answer.names]
            case "masks":
                return [
                    str(answer.runs(number).to_coco()["counts"]).encode()
                    for answer in answers
                    for number in range(len(answer))
                ]
            case "image_index":
                return np.repeat(np.arange(len(answers)), [len(answer) for answer in answers])
            case "class_index":
                return np.concatenate([answer.class_indices for answer in answers])
            case "keypoints":
                return np.concatenate(
                    [answer.keypoints for answer in answers if answer.keypoints is not None]
                )
        return np.concatenate([answer.scores if name == "scores" else answer.boxes for answer in answers])

    def count(self, answer: Detections) -> None:
        """Count the objects by label, and the largest score."""
        count_labels(answer.names, float(answer.scores.max(initial=0)))

    @staticmethod
    def rows(answer: Mapping[str, Any]) -> list[Row]:
        """The objects, with their boxes; see `Task`."""
        return [
            Row(one["label"], f"{100 * one['score']:.1f} %  {_shown(one['box'])}", one["score"])
            for one in answer["detections"]
        ] or [Row("nothing", f"no object with a score of {answer['threshold']:g} or more")]


def _wide(found: Detections) -> NDArray[np.bool_]:
    """Which objects are wider and higher than THIN, in an image of size 1."""
    wide: NDArray[np.bool_] = (found.boxes[:, 2:] - found.boxes[:, :2]).min(1) > THIN
    return wide


def _shown(box: Sequence[float] | NDArray[np.float32]) -> str:
    return " ".join(f"{float(side):.0f}" for side in box)
