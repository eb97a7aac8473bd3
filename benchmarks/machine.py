"""Machine: what the numbers were measured on, in words."""

import platform
from dataclasses import dataclass
from importlib.metadata import version

from pthserve.cpus import cpu_quota
from pthserve.engines.cpu import cpu, cpu_flags

LIBRARIES = ("torch", "torchvision", "openvino", "pillow", "fastapi", "uvicorn", "litserve")


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor, how many of its cores may be used, what it computes natively; the system; versions."""

    processor: str
    cpus: int
    instructions: list[str]
    system: str
    libraries: dict[str, str]

    @classmethod
    def this(cls) -> "Machine":
        """The one that this runs on."""
        cpus = cpu_quota()
        system = f"{platform.system()} on {platform.machine()}, Python {platform.python_version()}"
        libraries = {name: version(name) for name in LIBRARIES}
        return cls(cpu(cpus).partition(",")[0], cpus, sorted(cpu_flags()), system, libraries)
