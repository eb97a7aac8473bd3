"""Plan: which engine runs a model on this machine, and how. `tune` makes it."""

from dataclasses import asdict, dataclass
from typing import Any

from pthserve.planning.agreement import Evidence


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate at one batch size, as measured.

    Attributes:
        rate: Images per second at `batch`; 0 if it was not measured.
        difference: Largest difference from fp32 PyTorch; see `Evidence`.
        agrees: Whether it may stand in for fp32 PyTorch.
        note: Why the candidate was rejected, or "".
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
    """How to run a model.

    Attributes:
        max_batch: Largest batch size that is worth using.
        reason: Why this plan was chosen over the other `trials`.
        digest: SHA-256 of the weights that were measured; "" if nothing was measured.
        cpu: The processor on which they were measured, or "".
        library: Name and version of the library that ran them, or "".
        task: The task whose answers were compared.
        evidence: How the answers of each engine and precision compare with those of fp32 PyTorch.
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
    evidence: tuple[Evidence, ...] = ()

    @property
    def agreement(self) -> Evidence | None:
        """The evidence for the engine and precision of the plan; None if they were not compared."""
        for one in self.evidence:
            if (one.engine, one.precision) == (self.engine, self.precision):
                return one
        return None

    def to_dict(self) -> dict[str, Any]:
        """Convert the plan to plain values for JSON. The task is left out for a classification."""
        values = asdict(self)
        if self.task == Plan.__dataclass_fields__["task"].default:
            del values["task"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        """Make a plan from the values of `to_dict`; raises TypeError for an unknown field."""
        return cls(
            **{
                **values,
                "trials": tuple(Trial(**trial) for trial in values.get("trials", ())),
                "evidence": tuple(Evidence(**one) for one in values.get("evidence", ())),
            }
        )
