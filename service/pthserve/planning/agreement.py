"""Agreement: how an engine's answers differ from those of fp32 PyTorch, and whether it may stand in for it.

The rule: an engine and precision may stand in for fp32 PyTorch if, on at least 200 crops, a probability
differs by at most `tolerance` on average, and the top class is the same on at least 99 % of the crops on
which fp32's leads by more than 0.1.

The difference of a crop is the largest one of a probability in it. Their average is held against the
tolerance with a margin, `Evidence.bound`: crops of one photo resemble each other, and a service sees other
photos than those of the package. With `max_accuracy_drop`, the accuracy on labelled images decides instead.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine, Images, Logits
from pthserve.engines.cpu import instruction_sets, library
from pthserve.options import ModelOptions
from pthserve.planning.crops import Origin
from pthserve.tasks.base import Task

CLEAR = 0.1
"""Lead of a decision in probability from which on it is clear: about twice the p95 difference of bf16."""
UNLIKE = 1.5
"""By how many times the mean difference may be larger on photos that are unlike those of the package.

Of bf16 and int8 of four networks, the mean on 17 other photos was 0.7 to 1.45 times that on the samples; see
docs/precision.md.
"""
KEPT = 0.99
"""Smallest share of clear decisions that an engine must keep."""
ROUNDING = 1e-3
"""Largest difference that the rounding of fp32 makes in a probability."""
_MOST = 1e6
"""What a larger difference, or one that is not a number, counts as: JSON has no infinity."""
_QUANTILE = 1.6448536
"""95 % quantile of the standard normal distribution."""

Forward = Callable[[Images], Logits]


@dataclass(frozen=True, slots=True)
class Rule:
    """What an engine is held to.

    Attributes:
        tolerance: Maximum mean difference.
        accuracy_drop: Maximum drop in accuracy on labelled images, as a share; it decides instead if given.
    """

    tolerance: float
    accuracy_drop: float | None = None

    @classmethod
    def of(cls, options: ModelOptions) -> "Rule":
        """Return the rule that `options` ask for."""
        return cls(options.tolerance, options.accuracy_drop)


@dataclass(frozen=True, slots=True)
class Evidence:
    """How the answers of an engine differ from the reference's. Shares are 0 to 1.

    A difference is the largest one of a probability in a crop, or what the task compares in its place.

    Attributes:
        crops: Number of crops that were compared.
        photos: Number of photos that they are from.
        source: What the photos are.
        mean: Mean difference.
        bound: Upper bound of the mean on other photos: at 95 % confidence of photos like these, and no less
            than UNLIKE times the mean where the photos are not of the kind that the service will see.
        p95: The difference that 95 % of the crops do not exceed.
        largest: The largest difference.
        same: Share of crops with the same decision, such as the top class; None for a task without one.
        clear: Number of crops with a clear decision of the reference; None likewise.
        kept: Number of those on which each clear decision is the same; None likewise.
        reference_accuracy: Share of labelled images that the reference answers correctly, or None.
        accuracy: Share that the engine answers correctly; None likewise.
        engine, precision: What was compared.
        digest: SHA-256 of the photos; see `Crops.digest`.
        cpu: Instruction sets of the processor that computed the answers.
        library: Name and version of the library that computed them.
    """

    engine: str
    precision: str
    crops: int
    photos: int
    source: str
    mean: float
    bound: float
    p95: float
    largest: float
    same: float | None = None
    clear: int | None = None
    kept: int | None = None
    reference_accuracy: float | None = None
    accuracy: float | None = None
    digest: str = ""
    cpu: str = ""
    library: str = ""

    def refusal(self, rule: Rule) -> str:
        """Return why the engine may not stand in for the reference, or ""."""
        if self.largest >= _MOST:
            return "answers are not numbers, or not of the same shape"
        if rule.accuracy_drop is not None:
            return self._accuracy_refusal(rule.accuracy_drop)
        if self.bound > rule.tolerance:
            return (
                f"on {self.crops} crops a difference is {self.mean:.4f} on average, and may be up to "
                f"{self.bound:.4f} on others; the tolerance is {rule.tolerance:g}{self._advice()}"
            )
        if self.clear and self.kept is not None and self.kept < KEPT * self.clear:
            return (
                f"the decision is another on {self.clear - self.kept} of {self.clear} crops on which it is "
                f"clear; {KEPT:.0%} must be the same"
            )
        return ""

    def _advice(self) -> str:
        if self.precision != "fp32" or self.engine == "torch":
            return ""
        return ". At fp32 only rounding should differ: serve the weights with --engine torch"

    def _accuracy_refusal(self, limit: float) -> str:
        if self.accuracy is None and self.largest <= ROUNDING:
            return ""
        if self.accuracy is None or self.reference_accuracy is None:
            return "the accuracy is unknown: --max-accuracy-drop needs --validation with labels"
        drop = self.reference_accuracy - self.accuracy
        if drop <= limit + 1e-9:
            return ""
        return (
            f"the accuracy on {self.photos} images drops by {100 * drop:.2f} % to "
            f"{100 * self.accuracy:.2f} %; at most {100 * limit:g} % is allowed"
        )

    def words(self) -> str:
        """Return the figures in words, for a log or a terminal."""
        parts = [f"mean difference {self.mean:.4f} (p95 {self.p95:.4f}, largest {self.largest:.4f})"]
        if self.same is not None:
            parts.append(f"same decision on {100 * self.same:.1f} %")
        if self.clear is not None:
            parts.append(
                f"on {self.kept} of {self.clear} where it is clear" if self.clear else "none is clear"
            )
        if self.accuracy is not None and self.reference_accuracy is not None:
            parts.append(
                f"accuracy {100 * self.accuracy:.2f} % ({100 * self.reference_accuracy:.2f} % at fp32)"
            )
        return f"{', '.join(parts)}; on {self.crops} crops of {self.photos} {self.source}"

    def to_dict(self) -> dict[str, Any]:
        """Convert the evidence to plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The scores of the reference for crops, float32 (n, outputs), see `Task.scores`."""

    scores: NDArray[np.float32]
    origin: Origin


def scores(task: Task, forward: Forward, batches: Iterable[Images]) -> NDArray[np.float32]:
    """Return the scores of an engine for batches of images: float32 (n, outputs)."""
    return np.concatenate([task.scores(forward(batch)) for batch in batches])


def examine(task: Task, engine: Engine, crops: Iterable[Images], reference: Reference) -> Evidence:
    """Compare an engine with the reference on the crops that the reference answered."""
    return compare(task, engine, scores(task, engine, crops), reference)


def compare(task: Task, engine: Engine, found: NDArray[np.float32], reference: Reference) -> Evidence:
    """Compare the scores of an engine, float32 (n, outputs), with those of the reference."""
    expected, origin = reference.scores, reference.origin
    photos = min(origin.photos, len(expected))
    measured = Evidence(
        engine.name,
        engine.precision,
        len(expected),
        photos,
        origin.source,
        *(_MOST,) * 4,
        digest=origin.digest,
        cpu=instruction_sets(),
        library=library(engine.name),
    )
    if found.shape != expected.shape:
        return measured
    comparison = task.agree(found, expected, CLEAR)
    differences = np.minimum(comparison.differences.astype(np.float64), _MOST)
    measured = replace(
        measured,
        mean=_rounded(differences.mean()),
        bound=_rounded(max(_bound(differences, photos), differences.mean() * (1 if origin.own else UNLIKE))),
        p95=_rounded(_quantile(differences, 0.95)),
        largest=_rounded(differences.max()),
    )
    if comparison.same is not None and comparison.clear is not None and comparison.kept is not None:
        measured = replace(
            measured,
            same=_rounded(comparison.same.mean()),
            clear=int(comparison.clear.sum()),
            kept=int((comparison.clear & comparison.kept).sum()),
        )
    labels = origin.labels
    if labels is None or task.golden_kind != "class" or len(labels) > len(expected):
        return measured
    threshold = float(task.parameters().get("threshold", 0.5))
    return replace(
        measured,
        accuracy=_accuracy(found, labels, threshold),
        reference_accuracy=_accuracy(expected, labels, threshold),
    )


def _accuracy(found: NDArray[np.float32], labels: Sequence[int], threshold: float) -> float:
    """Return the share of photos whose first crop, all of the photo, is given its class.

    threshold: From which on one output alone is the positive class.
    """
    classes = (found[:, 0] >= threshold).astype(int) if found.shape[1] == 1 else found.argmax(1)
    return _rounded((classes[: len(labels)] == np.array(labels)).mean())


def _bound(differences: NDArray[np.float64], photos: int) -> float:
    """Return the one-sided upper bound of the mean difference at 95 % confidence, by Student's t over photos.

    The quantile of t is the expansion of Abramowitz and Stegun, 26.7.5, to two terms.
    """
    means = np.array([differences[number::photos].mean() for number in range(photos)])
    if photos == 1:
        means = differences
    free = len(means) - 1
    if free < 1:
        return float(means.mean())
    z = _QUANTILE
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return float(differences.mean() + quantile * means.std(ddof=1) / math.sqrt(len(means)))


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """Return what `np.quantile` does, which imports 10 ms of NumPy at every start."""
    ordered = np.sort(values)
    return float(np.interp(share * (len(ordered) - 1), np.arange(len(ordered)), ordered))


def _rounded(value: float | np.floating[Any]) -> float:
    return float(f"{float(value):.6g}")
