"""Quantise: find which layers of a model can be at int8 so that its answers still agree with fp32 PyTorch.

All layers are quantised first. If the answers do not agree, each layer is measured alone: how far the
answers move if only it is at int8. The layers that move them most, for what they save, are left at floating
point, as few of them as the comparison with fp32 PyTorch allows; see `agreement`. The rest is computed at
bf16 where the processor has it, or at fp32, whichever costs less in the end.

The costs are estimated and not timed, so that the same input gives the same graph.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pthserve.engines.base import Engine
from pthserve.engines.quantized_graph import Quantization, QuantizedGraph, quantize, weight_bits
from pthserve.errors import EngineError
from pthserve.images.preprocess import Prepared, normalise
from pthserve.images.spec import Spec
from pthserve.planning import calibration
from pthserve.planning.agreement import CLEAR, Evidence
from pthserve.planning.candidates import Candidate, EngineFactory, Quantized

if TYPE_CHECKING:
    import openvino

Rest = Literal["bf16", "fp32"]
COST = {"int8": 1, "bf16": 2, "fp32": 4}
"""What a multiplication costs, in proportion: bytes of a number, of which a register holds 64 or 32."""
_PROBES = (16, 48)
"""Fewest and most crops on which each layer is measured."""
_WORK = 10**13
"""Multiplications to measure all layers with: about two minutes on 2 cores at fp32."""

Judge = Callable[[Engine], tuple[Evidence, str]]
"""Compares an engine with fp32 PyTorch; returns the evidence, and why it does not agree, or ""."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Layers that are left at floating point, by their indices, and what was found of the others.

    cost: Of a multiplication on average, see COST.
    """

    floating: tuple[int, ...]
    rest: Rest
    cost: float
    evidence: Evidence
    refusal: str


@dataclass(slots=True)
class Search:
    """The search for the layers of one model that stay at floating point.

    Attributes:
        engines: Makes the engines of the model.
        made: Its graph at int8.
        photos: Number of photos that it was calibrated on.
        bits: Of its weights.
        judge: Compares an engine with fp32 PyTorch.
        tried: What was compared, in order.
    """

    engines: EngineFactory
    made: QuantizedGraph
    photos: int
    bits: int
    judge: Judge
    tried: list[Choice] = field(default_factory=list)

    def run(self, order: Callable[[], Sequence[int]]) -> Quantized:
        """Return the graph with the fewest layers at floating point that agrees with fp32 PyTorch.

        Args:
            order: Gives the layers in the order in which they are left; called if not all can be at int8.

        Raises:
            EngineError: What agrees would be no faster than without int8.
        """
        rests = self._rests()
        whole = self._try((), rests[0])
        if not whole.refusal:
            return self._quantized(whole, whole)
        layers = order()
        holding = [found for rest in rests if (found := self._fewest(layers, rest))]
        if not holding:
            raise EngineError(self._failure(whole, rests[0]))
        return self._quantized(min(holding, key=lambda one: one.cost), whole)

    def _rests(self) -> tuple[Rest, ...]:
        from pthserve.engines.openvino_engine import precisions

        return ("bf16", "fp32") if "bf16" in precisions() else ("fp32",)

    def _fewest(self, order: Sequence[int], rest: Rest) -> Choice | None:
        """Return the choice with the fewest of the first layers of `order`; None if none is worth it."""
        limit = float(COST[self._rests()[0]])
        most = len(order)
        while most and self._cost(order[:most], rest) >= limit:
            most -= 1
        fails, count = 0, min(1, most)
        best: Choice | None = None
        while count:  # twice as many each time, until it agrees
            tried = self._try(tuple(order[:count]), rest)
            if not tried.refusal:
                best = tried
                break
            fails = count
            count = min(2 * count, most) if count < most else 0
        while best and len(best.floating) - fails > 1:
            tried = self._try(tuple(order[: (len(best.floating) + fails) // 2]), rest)
            if tried.refusal:
                fails = len(tried.floating)
            else:
                best = tried
        return best

    def _try(self, floating: tuple[int, ...], rest: Rest) -> Choice:
        cost = self._cost(floating, rest)
        graph = self.made.without(floating)
        how = self._how(floating, rest, "")
        self.engines.quantized = Quantized(graph, how)
        try:
            engine = self.engines.make(Candidate("openvino", "int8", "cpu", self.engines.options.cpus))
        finally:
            self.engines.quantized = None
        try:
            evidence, refusal = self.judge(engine)
        finally:
            engine.close()
        _log.info("int8, %d layers at %s: %s", len(floating), rest, refusal or evidence.words())
        self.tried.append(Choice(floating, rest, cost, evidence, refusal))
        return self.tried[-1]

    def _quantized(self, choice: Choice, whole: Choice) -> Quantized:
        how = self._how(choice.floating, choice.rest, _figures(whole.evidence) if choice.floating else "")
        return Quantized(self.made.without(choice.floating), how)

    def _how(self, floating: Sequence[int], rest: Rest, whole: str) -> Quantization:
        kinds = Counter(self.made.layers[index].kind for index in sorted(floating))
        share = round(1 - self._share(floating), 4)
        return Quantization(self.bits, len(self.made.layers), dict(kinds), share, rest, self.photos, whole)

    def _share(self, floating: Sequence[int]) -> float:
        total = sum(layer.multiplications for layer in self.made.layers)
        return sum(self.made.layers[index].multiplications for index in floating) / max(1, total)

    def _cost(self, floating: Sequence[int], rest: Rest) -> float:
        share = self._share(floating)
        return COST["int8"] * (1 - share) + COST[rest] * share

    def _failure(self, whole: Choice, native: Rest) -> str:
        """Say why int8 was refused, with the figures."""
        best = min(self.tried, key=lambda one: one.evidence.bound)
        return (
            f"int8 does not agree with fp32 PyTorch where it would be faster than {native}: with all "
            f"{len(self.made.layers)} layers at int8, {whole.refusal}; with {len(best.floating)} layers left "
            f"at {best.rest} and {1 - self._share(best.floating):.0%} of the multiplications at int8, "
            f"{best.refusal}. More or more typical calibration images may help; --tolerance "
            f"{_above(best.evidence.bound):g} accepts the latter; or use --precision auto"
        )


def all_layers(graph: "openvino.Model", tensors: NDArray[np.float32]) -> Quantized:
    """Quantise all layers of a graph, whatever its answers become.

    Args:
        tensors: float32 (n, channels, height, width), normalised images to calibrate on.
    """
    made = quantize(graph, tensors, weight_bits())
    how = Quantization(weight_bits(), len(made.layers), {}, 1.0, "fp32", len(tensors), "")
    return Quantized(made.quantized, how)


def find(engines: EngineFactory, judge: Judge) -> Quantized:
    """Quantise the model as far as its answers agree with those of fp32 PyTorch.

    Args:
        engines: Makes the engines of the model; `options.calibration` names the photos to calibrate on.
        judge: Compares an engine with fp32 PyTorch.

    Raises:
        EngineError: There are too few photos, or the answers agree only where int8 would be no faster.
    """
    options, spec = engines.options, engines.spec
    images = calibration.read(options, spec, _PROBES[1])
    bits: int = options.weight_bits or weight_bits()
    if bits > weight_bits():
        raise EngineError(
            "weights of 8 bits need VNNI or AMX, and this processor has neither; pack on one that has, or "
            "use --weight-bits 7"
        )
    _log.info("int8: quantising with %d crops of %d photos", len(images.ranges), images.photos)
    made = quantize(engines.graph, _tensors(images.ranges, spec), bits)
    search = Search(engines, made, images.photos, bits, judge)

    def order() -> list[int]:
        total = sum(layer.multiplications for layer in made.layers)
        count = int(np.clip(_WORK // max(1, total * len(made.layers)), *_PROBES))
        probes = _tensors(images.probes[:count], spec)
        _log.info("int8: measuring %d layers on %d crops", len(made.layers), len(probes))
        return by_harm(made, harms(engines, made, probes))

    return search.run(order)


def _tensors(images: Prepared, spec: Spec) -> NDArray[np.float32]:
    """Normalise images, which are so already where the preprocessing keeps fractions."""
    return normalise(images, spec) if spec.rounded else images


def harms(engines: EngineFactory, made: QuantizedGraph, probes: NDArray[np.float32]) -> list[float]:
    """Return how far the answers move if a layer alone is at int8, for each: a mean square difference.

    Args:
        probes: float32 (n, channels, height, width), normalised images.
    """
    from pthserve.engines.openvino_engine import outputs

    task, threads, every = engines.task, engines.options.cpus, range(len(made.layers))
    expected = task.scores(outputs(made.original, probes, threads))

    def harm(layer: int) -> float:
        found = outputs(made.without([other for other in every if other != layer]), probes, threads)
        differences = task.agree(task.scores(found), expected, CLEAR).differences.astype(np.float64)
        return float((np.minimum(differences, 1e6) ** 2).mean())

    return [harm(layer) for layer in every]


def by_harm(made: QuantizedGraph, harms: Sequence[float]) -> list[int]:
    """Return the layers in the order in which they are left at floating point: most harm for what it saves.

    A layer of few multiplications takes time too, to move values: it counts as a quarter of an average one
    more.
    """
    moving = sum(layer.multiplications for layer in made.layers) / max(1, 4 * len(made.layers))
    saved = [layer.multiplications + moving for layer in made.layers]
    return sorted(range(len(harms)), key=lambda layer: (-harms[layer] / (saved[layer] or 1), layer))


def _figures(evidence: Evidence) -> str:
    return evidence.words().rpartition(";")[0]


def _above(bound: float) -> float:
    """Return the next larger number of two decimals."""
    return float(np.ceil(bound * 100 + 1e-9) / 100)
