"""Findings: what a run found, as plain values in a file and back."""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.machine import Machine
from benchmarks.measure import Sample
from pthserve.planning.plan import Plan

Key = tuple[str, str]
"""A subject and a scenario, such as `auto fast` and `8 clients`; `forward` and a precision, and a batch size;
`decode` and how, and which photos or model; `benchmark_app`, and a precision or a model and one."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a service came up: seconds until it was ready, and the MiB that it then held."""

    seconds: float
    memory: float


@dataclass(slots=True)
class Findings:
    """What a run found.

    plans: by precision, what the model ran with; of other models by name and precision. refused: why there is
    none.
    repeats: each with the sample of every key; answers a second, or seconds.
    starts, and idle: the cores that a service took while nobody asked it anything; by subject.
    """

    machine: Machine
    plans: dict[str, Plan] = field(default_factory=dict)
    repeats: list[dict[Key, Sample]] = field(default_factory=list)
    starts: dict[str, Start] = field(default_factory=dict)
    idle: dict[str, Sample] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return {
            "machine": asdict(self.machine),
            "plans": {name: plan.to_dict() for name, plan in self.plans.items()},
            "repeats": [
                [{"who": who, "what": what, **asdict(sample)} for (who, what), sample in repeat.items()]
                for repeat in self.repeats
            ],
            "starts": {name: asdict(start) for name, start in self.starts.items()},
            "idle": {name: asdict(sample) for name, sample in self.idle.items()},
            "refused": self.refused,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Findings":
        """The inverse of `to_dict`."""
        return cls(
            Machine(**values["machine"]),
            {name: Plan.from_dict(plan) for name, plan in values["plans"].items()},
            [
                {(one.pop("who"), one.pop("what")): Sample(**one) for one in repeat}
                for repeat in values["repeats"]
            ],
            {name: Start(**start) for name, start in values["starts"].items()},
            {name: Sample(**sample) for name, sample in values["idle"].items()},
            values.get("refused", {}),
        )
