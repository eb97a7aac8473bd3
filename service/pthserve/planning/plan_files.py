"""Plans in files: kept from one start to the next, and used again where they fit."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pthserve.engines.cpu import cpu
from pthserve.errors import EngineError
from pthserve.files import regular_files
from pthserve.options import ModelOptions
from pthserve.planning.plan import Plan
from pthserve.text import quoted

MOST = 2**20
"""Most bytes of a plan's file."""


def write(plan: Plan, path: Path) -> None:
    """Write `plan` to `path` as JSON, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(plan.to_dict(), indent=1) + "\n")
    temporary.replace(path)


def read(path: Path) -> Plan:
    """The plan that `write` wrote to `path`.

    Raises:
        EngineError: there is no such file, or no plan in it.
    """
    try:
        return Plan.from_dict(json.loads(regular_files.read(path, MOST)))
    except OSError as error:
        raise EngineError(f"{path}: the plan cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(
            f"{path}: is not a plan file ({quoted(error)}); create one with `pthserve tune`"
        ) from error


def cache_file(digest: str, settings: ModelOptions) -> Path | None:
    """Where the plan for these weights and settings is kept; None where they name no cache folder."""
    if settings.cache_dir is None:
        return None
    return settings.cache_dir / "-".join(
        ("plan", digest[:16], settings.engine, settings.precision, settings.device + ".json")
    )


def fits(plan: Plan, digest: str, settings: ModelOptions, task: str = "classification") -> bool:
    """Whether `plan` was measured with these weights and this task on such a processor, as `settings` ask."""
    return (
        plan.digest == digest
        and plan.task == task
        and plan.cpu == cpu(settings.cpus)
        and plan.library == library(plan.engine)
        and settings.engine in ("auto", plan.engine)
        and settings.precision in ("auto", plan.precision)
        and settings.device in ("auto", plan.device)
        and plan.difference <= settings.tolerance
    )


def library(engine: str) -> str:
    """Name and version of what runs `engine`, without importing it; "" where it is not installed."""
    try:
        return f"{engine} {version(engine)}"
    except PackageNotFoundError:
        return ""
