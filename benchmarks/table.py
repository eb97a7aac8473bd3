"""Table: what a run found, as the ratios that count."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

from benchmarks.bare import BATCHES
from benchmarks.findings import Findings, Key
from benchmarks.measure import Sample
from benchmarks.models import DEMO, PRECISIONS
from benchmarks.subjects import DECODES, PEERS, PEERS_OF_DEMO, UNPACKED

Variant = tuple[str, str]
"""Of this service: a precision, and how it decodes."""


@dataclass(frozen=True, slots=True)
class Row:
    """A ratio.

    ratios: one a repeat, of numbers that were measured within a minute or two of each other.
    wanted: what it should be; bound: what it would be on this machine if everything else cost nothing.
    above: whether more is better.
    """

    name: str
    ratios: tuple[float, ...]
    wanted: float
    bound: float
    above: bool = True

    @property
    def ratio(self) -> float:
        """The median over the repeats."""
        return median(self.ratios)

    @property
    def reached(self) -> bool:
        """Whether it is as wanted."""
        return self.ratio >= self.wanted if self.above else self.ratio <= self.wanted


WANTED: dict[Variant, float] = {
    ("fp32", "exact"): 1.38,
    ("fp32", "fast"): 1.42,
    ("auto", "exact"): 2.4,
    ("auto", "fast"): 2.5,
}
"""Throughput, as a multiple of the best peer's."""
WANTED_OF_DEMO = {"fp32": 1.5, "auto": 2.5, "int8": 3.0}
"""The same of the ImageNet demo, which is trained: what int8 brings is said of no other model."""
FASTEST = ("auto", "fast")
WANTED_OF_LIMIT = {"fp32": 0.93, "auto": 0.92, "int8": 0.90}
WANTED_LARGE = 4.8
WANTED_LONE = 1.12
WANTED_CROWDED = 0.95
WANTED_PACKED = 0.98
WANTED_IDLE = 0.005
"""Cores; a clock of the operating system's is 0.01 seconds long."""


def rows(findings: Findings) -> list[Row]:
    """The table of ratios."""
    repeats = [Repeat(findings, samples) for samples in findings.repeats]
    variants = [each for each in product(PRECISIONS, DECODES) if each[0] in findings.plans]

    def row(name: str, ratios: Iterable[float], wanted: float, bounds: Iterable[float] = (1.0,)) -> Row:
        return Row(name, tuple(ratios), wanted, median(bounds))

    def at_most(name: str, ratios: Iterable[float], wanted: float, bound: float) -> Row:
        return Row(name, tuple(ratios), wanted, bound, above=False)

    large = "8 clients, large photos"
    return [
        *(
            row(
                f"throughput, {_named(variant)} / best peer",
                (repeat.rate(variant) / repeat.best_peer() for repeat in repeats),
                wanted,
                (repeat.limit(variant) / repeat.best_peer() for repeat in repeats),
            )
            for variant, wanted in WANTED.items()
        ),
        *(
            row(
                f"throughput, {DEMO}, `{precision}` / best peer",
                (
                    repeat.rate((DEMO, precision)) / repeat.best_peer(peers=PEERS_OF_DEMO)
                    for repeat in repeats
                ),
                wanted,
                (
                    repeat.limit_of(DEMO, precision) / repeat.best_peer(peers=PEERS_OF_DEMO)
                    for repeat in repeats
                ),
            )
            for precision, wanted in WANTED_OF_DEMO.items()
            if f"{DEMO} {precision}" in findings.plans
        ),
        *(
            row(
                f"served / limit, {_named(variant)}",
                (repeat.rate(variant) / repeat.limit(variant) for repeat in repeats),
                WANTED_OF_LIMIT[variant[0]],
            )
            for variant in variants
        ),
        row(
            f"throughput, 4000x3000 photos, {_named(FASTEST)} / best peer",
            (repeat.rate(FASTEST, large) / repeat.best_peer(large) for repeat in repeats),
            WANTED_LARGE,
            (repeat.limit(FASTEST, "large") / repeat.best_peer(large) for repeat in repeats),
        ),
        *(
            at_most(
                f"one client: latency / (decode + forward), {_named(variant)}",
                (repeat.rate(variant, "1 client") / repeat.alone(variant) for repeat in repeats),
                WANTED_LONE,
                1.0,
            )
            for variant in variants
        ),
        *(
            row(
                f"throughput at 64 clients / at 8, {_named(variant)}",
                (repeat.rate(variant, "64 clients") / repeat.rate(variant) for repeat in repeats),
                WANTED_CROWDED,
            )
            for variant in variants
            if variant[1] == "exact"
        ),
        row(
            "throughput, packed / from the weights file, `auto`, `exact`",
            (repeat.rate(("auto", "exact")) / repeat.rate((UNPACKED,)) for repeat in repeats),
            WANTED_PACKED,
        ),
        at_most(
            f"cores while idle, the most of {len(findings.idle)} services",
            [max(sample.value for sample in findings.idle.values())],
            WANTED_IDLE,
            0.0,
        ),
    ]


class Repeat:
    """One repeat's numbers."""

    def __init__(self, findings: Findings, samples: dict[Key, Sample]) -> None:
        self._findings = findings
        self._samples = samples
        self._cpus = findings.machine.cpus

    def rate(self, variant: Sequence[str], scenario: str = "8 clients") -> float:
        """What counts in `scenario`: answers a second, or a lone client's seconds."""
        return self._samples[" ".join(variant), scenario].value

    def best_peer(self, scenario: str = "8 clients", peers: Iterable[str] = tuple(PEERS)) -> float:
        """Answers a second of the one of `peers` that gives most."""
        return max(self._samples[peer, scenario].value for peer in peers)

    def decode(self, variant: Variant, size: str = "small") -> float:
        """Seconds that a core takes for a photo."""
        return self._samples[f"decode {variant[1]}", size].value

    def forward(self, name: str) -> float:
        """Seconds that an image takes in a forward pass, at the batch size at which it takes least."""
        return min(self._samples[f"forward {name}", str(batch)].value for batch in BATCHES)

    def benchmark_app(self, name: str) -> float:
        """Images a second of OpenVINO's own benchmark_app."""
        return 1 / self._samples["benchmark_app", name].value

    def alone(self, variant: Variant) -> float:
        """Seconds that one image takes to be decoded and run, by itself."""
        return self.decode(variant) + self._samples[f"forward {variant[0]}", "1"].value

    def limit(self, variant: Variant, size: str = "small") -> float:
        """Images a second if nothing but decoding and the forward pass took time.

        On a GPU the forward pass runs beside the decoding; on the CPU they share its cores.
        """
        return self._limit(variant[0], self.decode(variant, size))

    def limit_of(self, model: str, precision: str) -> float:
        """The same of one of the other models."""
        return self._limit(f"{model} {precision}", self._samples["decode exact", model].value)

    def _limit(self, name: str, decoding: float) -> float:
        decode, forward = decoding / self._cpus, self.forward(name)
        on_cpu = self._findings.plans[name].device == "cpu"
        return 1 / (forward + decode) if on_cpu else 1 / max(forward, decode)


def _named(variant: Variant) -> str:
    return ", ".join(f"`{word}`" for word in variant)
