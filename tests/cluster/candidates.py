"""Candidates: what a release that serves a model is upgraded to, 60 of them sabotaged and 30 honest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pthserve.loading.pack import pack
from pthserve.settings import Settings

from . import variants
from .machine import run
from .variants import Change, Weights

_BATCH_NORMALISATION = "stage2.0.branch2.1"


def _same(weights: Weights) -> Weights:
    return weights


@dataclass(frozen=True)
class Candidate:
    """A model to upgrade to, or the model in service in a process with a fault.

    kind: what candidates that differ only in strength or seed have in common. name: also the version in its
    card, by which its answers are known. change: of the weights in service. card: fields other than those of
    the training. fault: a statement that the process runs for each image.
    """

    kind: str
    name: str
    change: Change = _same
    card: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    honest: bool = False

    def write(self, base: Weights, folder: Path) -> Path:
        """Its weights and card as the folder `name` in `folder`, which are made unless they are there."""
        target = folder / self.name
        if not (target / "model.yaml").exists():
            variants.write(target, self.change(base), self.name, **self.card)
        return target

    def pack(self, base: Weights, folder: Path) -> Path:
        """As `write`, and packed as the folder `name` in `folder`/packed.

        Raises:
            PthserveError: It is refused.
        """
        target = folder / "packed" / self.name
        if not target.exists():
            pack(str(self.write(base, folder / "weights")), target, Settings(tune_budget=0))
            run("chmod", "-R", "a+rX", target)
        return target


BASE = Candidate("base", "base", honest=True)


def _numbered(
    kind: str, changes: list[Change] | None = None, cards: list[dict[str, Any]] | None = None
) -> list[Candidate]:
    made = [Candidate(kind, f"{kind}-{n}", change) for n, change in enumerate(changes or (), 1)]
    return made + [Candidate(kind, f"{kind}-{n}", card=card) for n, card in enumerate(cards or (), 1)]


def _faulty(kind: str, *faults: str) -> list[Candidate]:
    return [Candidate(kind, f"{kind}-{n}", fault=fault) for n, fault in enumerate(faults, 1)]


def _trained(**how: Any) -> Change:
    return lambda base: variants.train(**how)


def _tuned(seed: int, epochs: float) -> Change:
    return lambda base: variants.train(seed, epochs, start=base)


def _normalisation(mean: float, std: float) -> dict[str, Any]:
    return {"preprocessing": {"mean": [mean] * 3, "std": [std] * 3}}


_LABELS = variants.labels()

KINDS: Mapping[str, list[Candidate]] = {
    found[0].kind: found
    for found in (
        _numbered("permuted", [variants.permuted(seed) for seed in range(1, 6)]),
        _numbered("swapped", [variants.swapped(*pair) for pair in ((0, 1), (2, 8), (3, 5), (4, 9))]),
        _numbered(
            "shifted-head",
            [variants.reordered([(row + by) % variants.CLASSES for row in range(10)]) for by in (1, 2, 5)],
        ),
        _numbered(
            "relabelled",
            cards=[
                {"labels": found} for found in (_LABELS[1:] + _LABELS[:1], _LABELS[::-1], sorted(_LABELS))
            ],
        ),
        _numbered("bgr", [variants.channels(order) for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1))]),
        _numbered("bgr-card", cards=[{"preprocessing": {"channel_order": "bgr"}}]),
        _numbered(
            "wrong-mean",
            cards=[
                _normalisation(*values) for values in ((0, 1), (0.5, 1), (0, 0.5), (0.9, 0.25), (0.485, 1))
            ],
        ),
        _numbered("no-crop", cards=[{"preprocessing": {"resize": size}} for size in ([64, 64], 96)]),
        _numbered(
            "nan",
            [
                variants.not_a_number("conv1.0.weight", 3),
                variants.not_a_number("fc.weight", 5),
                variants.negative_variance(f"{_BATCH_NORMALISATION}.running_var", 7),
                variants.negative_variance("conv1.1.running_var", 0),
            ],
        ),
        _numbered("pruned", [variants.pruned(share) for share in (0.8, 0.9, 0.95, 0.98)]),
        _numbered("over-quantised", [variants.coarse(levels) for levels in (1, 2)]),
        _numbered(
            "noise",
            [variants.noisy(seed, share) for seed, share in ((1, 0.5), (2, 0.75), (3, 1.0), (4, 0.6))],
        ),
        _numbered(
            "other-data",
            [_trained(seed=seed, epochs=4, shuffled=True) for seed in (101, 102)]
            + [_trained(seed=seed, others=True) for seed in (103, 104)],
        ),
        _numbered(
            "half-trained",
            [
                _trained(seed=seed, epochs=epochs)
                for seed, epochs in ((111, 0.2), (112, 0.2), (113, 0.5), (114, 0.5))
            ],
        ),
        _faulty("slow", *(f"time.sleep({seconds})" for seconds in (0.25, 0.15, 0.5))),
        _faulty("leaks", *(f"kept.append(b'x' * {size})" for size in (8_000_000, 4_000_000, 16_000_000))),
        _faulty(
            "crashes", *(f"if random.random() < {one}: os._exit(139)" for one in (0.02, 0.05, 0.03, 0.02))
        ),
        _faulty(
            "fails", *(f"if random.random() < {one}: raise RuntimeError('spoilt')" for one in (0.2, 0.1))
        ),
    )
}
"""Sabotaged models, by their kind. Of each kind, the first one is the most usual."""
HONEST: Mapping[str, list[Candidate]] = {
    kind: [Candidate(kind, f"{kind}-{n}", change, honest=True) for n, change in enumerate(changes, 1)]
    for kind, changes in {
        "tuned": [_tuned(200 + n, 1 + n % 2) for n in range(15)],
        "retrained": [_trained(seed=300 + n) for n in range(15)],
    }.items()
}
"""Models as good as the one in service: trained on, and trained again with another seed."""


def in_turn(kinds: Mapping[str, list[Candidate]]) -> Iterator[Candidate]:
    """The first of each kind, then the second of each, and so on."""
    for turn in zip_longest(*kinds.values()):
        yield from filter(None, turn)


SABOTAGED = tuple(in_turn(KINDS))
SUCCESSORS = tuple(in_turn(HONEST))
