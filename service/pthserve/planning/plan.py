"""Plan: which engine runs a model on this machine, and how. `tune` chooses it."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Trial:
    """One measured candidate.

    rate: images a second at `batch`, 0 where it was not measured; difference: largest from fp32 torch on the
    proof images, see `Agreement`; agrees: whether the guard let it pass; note: why not, in words.
    """

    engine: str
    precision: str
    threads: int
    batch: int
    rate: float
    difference: float
    agrees: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run a model: engine, precision, threads, the largest batch worth making.

    reason: why this won over `trials`, in words.
    digest, cpu, library: the weights, the processor and the engine's version that were measured ("" when
    nothing was). task: the task whose answers were compared.
    """

    engine: str = "torch"
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    max_batch: int = 8
    reason: str = "nothing was measured"
    digest: str = ""
    cpu: str = ""
    library: str = ""
    task: str = "classification"
    trials: tuple[Trial, ...] = ()

    @property
    def difference(self) -> float:
        """Largest difference from fp32 torch, see `Agreement`, that the winner showed on the proof images."""
        return max(
            (
                trial.difference
                for trial in self.trials
                if (trial.engine, trial.precision) == (self.engine, self.precision)
            ),
            default=0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON; a classification's do not name the task."""
        values = asdict(self)
        if self.task == Plan.__dataclass_fields__["task"].default:
            del values["task"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """The inverse of `to_dict`; raises TypeError on a field it does not know."""
        return cls(**{**values, "trials": tuple(Trial(**trial) for trial in values.get("trials", ()))})
