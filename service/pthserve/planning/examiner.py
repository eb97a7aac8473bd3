"""Examiner: which engines and precisions of a model may stand in for fp32 PyTorch, examined once each."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine
from pthserve.engines.cpu import instruction_sets, library
from pthserve.errors import EngineError
from pthserve.images.preprocess import Pixels
from pthserve.planning import quantize
from pthserve.planning.agreement import (
    ROUNDING,
    Evidence,
    Reference,
    Rule,
    compare,
    examine,
    scores,
)
from pthserve.planning.candidates import Candidate, EngineFactory
from pthserve.planning.crops import BATCH, Crops, Origin

CHECKED = 2 * BATCH
"""Number of crops on which OpenVINO at fp32 is compared with PyTorch."""
_SLACK = 1.5
"""Evidence of a pack is measured again where a difference is so many times the largest one in it."""

_log = logging.getLogger(__name__)


class Proof(NamedTuple):
    """Images, uint8 (n, height, width, channels), and fp32 PyTorch's scores, float32 (n, outputs)."""

    images: Pixels
    scores: NDArray[np.float32]


GoldenCheck = Callable[[Engine], Collection[str]]
"""Returns the golden images that an engine does not give their known answers, each in a sentence."""


@dataclass(slots=True)
class Examiner:
    """Compares the engines of one model with fp32 PyTorch.

    PyTorch is slow on a CPU. Where OpenVINO at fp32 differs from it on CHECKED crops by no more than rounding
    does, it is the reference for all crops. A packed model has OpenVINO at fp32 alone, which is compared with
    PyTorch's answers in the pack.

    Attributes:
        engines: The engines of the model.
        crops: What they are compared on.
        proof: PyTorch's answers of a packed model.
        known: Evidence of a packed model.
        golden: Checks an engine on the golden images; None if there are none, or the policy is `off`.
        evidence: What was found, by engine and precision.
    """

    engines: EngineFactory
    crops: Crops
    proof: Proof | None = None
    known: Sequence[Evidence] = ()
    golden: GoldenCheck | None = None
    evidence: dict[tuple[str, str], Evidence] = field(default_factory=dict)
    _reference: Reference | None = None
    _rounding: Evidence | None = None
    _golden_reference: Collection[str] | None = None

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Convert the model, and quantise it, if `candidates` need it.

        Raises:
            EngineError: OpenVINO cannot convert the module, it cannot be quantised so that its answers agree,
                or a packed model has no int8 graph.
        """
        engines = self.engines
        engines.prepare(candidates)
        if engines.quantized is None and any(candidate.precision == "int8" for candidate in candidates):
            if engines.module is None and engines.options.calibration is None:
                raise EngineError(
                    "the model has no int8; pack it again with --precision int8 --calibration FOLDER"
                )
            engines.quantized = quantize.find(engines, self._judged)

    def refusal(self, engine: Engine) -> str:
        """Examine an engine and return why it may not stand in for fp32 PyTorch, or ""."""
        key = (engine.name, engine.precision)
        found = self.evidence.get(key)
        if found is None:
            found = self.evidence[key] = self._known(engine) or self._examined(engine)
            _log.info("%s %s: %s", *key, found.words())
        return found.refusal(Rule.of(self.engines.options)) or self._golden_disagreement(engine)

    def _judged(self, engine: Engine) -> tuple[Evidence, str]:
        """Examine an engine that is not kept: what was found, and why it does not agree, or ""."""
        found = examine(self.engines.task, engine, self.crops, self.reference())
        return found, found.refusal(Rule.of(self.engines.options)) or self._golden_disagreement(engine)

    def examine_all(self, candidates: Iterable[Candidate]) -> None:
        """Examine the engines of `candidates` that were not examined yet; skip those that cannot be made."""
        for candidate in candidates:
            if (candidate.engine, candidate.precision) in self.evidence:
                continue
            with suppress(EngineError), closing(self.engines.make(candidate)) as engine:
                self.refusal(engine)

    def reference(self) -> Reference:
        """Return the answers for the crops that engines are compared with, computed once.

        Raises:
            EngineError: OpenVINO at fp32 does not answer as PyTorch did when the model was packed.
        """
        if self._reference is None:
            _log.info("comparing with fp32 on %d crops of %s", len(self.crops), self.crops.source)
            name = "openvino" if self.engines.module is None or self._exact() else "torch"
            with self.fp32(name) as engine:
                if self.proof is not None:
                    self._check_pack(engine)
                found = scores(self.engines.task, engine, self.crops)
            self._reference = Reference(found, self.crops.origin)
        return self._reference

    def _exact(self) -> Evidence | None:
        """Return how OpenVINO at fp32 compares with PyTorch; None if it differs by more than rounding."""
        if self.engines.graph is None:
            return None
        if self._rounding is None:
            task, crops = self.engines.task, self.crops
            first = list(islice(crops, CHECKED // BATCH))
            with self.fp32("torch") as torch, self.fp32("openvino") as openvino:
                reference = Reference(scores(task, torch, first), crops.origin)
                self._rounding = examine(task, openvino, first, reference)
        return self._rounding if self._rounding.largest <= ROUNDING else None

    def _check_pack(self, openvino: Engine) -> None:
        """Raise EngineError if OpenVINO at fp32 does not answer as PyTorch did."""
        proven = self._proven(openvino)
        if proven is not None and (refusal := proven.refusal(Rule(self.engines.options.tolerance))):
            raise EngineError(
                f"OpenVINO at fp32 does not answer as PyTorch did when the model was packed: {refusal}"
            )

    def _proven(self, engine: Engine) -> Evidence | None:
        """Return how an engine compares with PyTorch's answers in the pack."""
        if self.proof is None:
            return None
        images, expected = self.proof
        found = scores(self.engines.task, engine, [image[None] for image in images])
        origin = Origin(len(images), "images of the pack")
        return compare(self.engines.task, engine, found, Reference(expected, origin))

    @contextmanager
    def fp32(self, name: str = "") -> Iterator[Engine]:
        """Yield the engine called `name` at fp32, or PyTorch's where there is a module, else OpenVINO's."""
        name = name or ("torch" if self.engines.module is not None else "openvino")
        engine = self.engines.make(Candidate(name, "fp32", "cpu", self.engines.options.cpus))
        try:
            yield engine
        finally:
            engine.close()

    def _known(self, engine: Engine) -> Evidence | None:
        """Return known evidence that holds on this processor, and for the photos that the options name."""
        here = (engine.name, engine.precision, instruction_sets(), library(engine.name))
        for one in self.known:
            if (one.engine, one.precision, one.cpu, one.library) != here:
                continue
            if self.engines.options.validation is not None and one.digest != self.crops.origin.digest:
                continue
            proven = self._proven(engine)
            if proven is None or proven.largest <= _SLACK * one.largest + ROUNDING:
                return one
        return None

    def _examined(self, engine: Engine) -> Evidence:
        found = None
        if self._is_reference(engine):
            first = list(islice(self.crops, CHECKED // BATCH))
            if self.engines.heavy:  # a pass takes seconds, and the reference agrees with itself
                first = [first[0][:1]]
            same = Reference(scores(self.engines.task, engine, first), self.crops.origin)
            found = compare(self.engines.task, engine, same.scores, same)
        elif (engine.name, engine.precision) == ("openvino", "fp32"):
            found = self._proven(engine) if self.engines.module is None else self._exact()
        return found or examine(self.engines.task, engine, self.crops, self.reference())

    def _is_reference(self, engine: Engine) -> bool:
        """Whether an engine is PyTorch at fp32 on a CPU, or what an exported model has in its place."""
        if engine.precision != "fp32":
            return False
        if engine.name == "torch":
            return self.engines.device() == "cpu"
        return self.engines.module is None and self.proof is None

    def _golden_disagreement(self, engine: Engine) -> str:
        """Return the golden image that an engine does not answer as known, although fp32 does; or ""."""
        if self.golden is None or engine.precision == "fp32":
            return ""
        wrong = self.golden(engine)
        if wrong and self._golden_reference is None:
            with self.fp32() as fp32:
                self._golden_reference = self.golden(fp32)
        images = {one.partition(": ")[0] for one in self._golden_reference or ()}
        new = [one for one in wrong if one.partition(": ")[0] not in images]
        return f"the golden image {new[0]}" if new else ""
