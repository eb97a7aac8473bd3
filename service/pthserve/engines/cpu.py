"""CPU: the instruction sets of this processor, and how a measurement names them and its library."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The instructions that decide which precision is quick.
_FLAGS = frozenset(
    (
        *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"),
    )
)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this CPU that matter for a forward pass, by Linux's names."""
    return _FLAGS & set(" ".join(_cpuinfo("flags", "Features")).split())


def cpu(cpus: int) -> str:
    """Describe the processor as far as a measurement on `cpus` of its CPUs depends on it."""
    model = next(iter(_cpuinfo("model name")), platform.machine())
    return f"{model}, {cpus} CPUs, {instruction_sets()}"


def instruction_sets() -> str:
    """The instruction sets of this CPU that decide what a precision computes, as one text."""
    return " ".join(sorted(cpu_flags()))


def library(engine: str) -> str:
    """Return name and version of the library of `engine` without importing it; "" if it is not installed."""
    try:
        return f"{engine} {version(engine)}"
    except PackageNotFoundError:
        return ""


def _cpuinfo(*keys: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() in keys]
