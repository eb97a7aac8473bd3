"""Plan files: plans are kept for the next start and used again if they fit."""

import json
import os
from pathlib import Path

from pthserve.engines.cpu import cpu, library
from pthserve.errors import EngineError
from pthserve.files import regular_files
from pthserve.options import ModelOptions
from pthserve.planning.agreement import Rule
from pthserve.planning.plan import Plan
from pthserve.text import quoted

MAX_BYTES = 2**20
"""Maximum size of a plan file in bytes."""


def write(plan: Plan, path: Path) -> None:
    """Write `plan` to `path` as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(plan.to_dict(), indent=1) + "\n")
    temporary.replace(path)


def read(path: Path) -> Plan:
    """Read the plan that `write` wrote to `path`.

    Raises:
        EngineError: The file cannot be read, or is not a plan file.
    """
    try:
        return Plan.from_dict(json.loads(regular_files.read(path, MAX_BYTES)))
    except OSError as error:
        raise EngineError(f"{path}: the plan cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(
            f"{path}: is not a plan file ({quoted(error)}); create one with `pthserve tune`"
        ) from error


def cache_file(digest: str, settings: ModelOptions) -> Path | None:
    """Return the file for the plan of these weights and settings; None if there is no cache folder."""
    if settings.cache_dir is None:
        return None
    return settings.cache_dir / "-".join(
        ("plan", digest[:16], settings.engine, settings.precision, settings.device + ".json")
    )


def fits(
    plan: Plan, digest: str, settings: ModelOptions, task: str = "classification", photos: str | None = None
) -> bool:
    """Whether `plan` was measured for these weights, task and processor, and is allowed by `settings`.

    Args:
        photos: The digest of the photos that its engine must have been compared on; None for any.
    """
    agreement = plan.agreement
    return (
        agreement is not None
        and not agreement.refusal(Rule.of(settings))
        and photos in (None, agreement.digest)
        and plan.digest == digest
        and plan.task == task
        and plan.cpu == cpu(settings.cpus)
        and plan.library == library(plan.engine)
        and settings.engine in ("auto", plan.engine)
        and settings.precision in ("auto", plan.precision)
        and settings.device in ("auto", plan.device)
    )
