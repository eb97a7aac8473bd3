#!/usr/bin/env python3
"""docs/settings.md, from the settings."""

import re
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

from pthserve.settings import Settings

HEAD = """# Settings

Each setting is an option of `pthserve serve`, an environment variable and a value of the Helm chart:
`--max-batch`, `PTHSERVE_MAX_BATCH` and `settings.maxBatch` are the same setting. An option takes precedence
over the environment variable, which takes precedence over the default. Sizes are in bytes, times in seconds.
`make docs` writes this table from the code.

| setting | default | description |
|---|---|---|
"""


def _row(name: str, field: FieldInfo) -> str:
    choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
    default = "unset" if field.default is None else f"`{field.default}`"
    choose = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
    return f"| `{name}` | {default} | {re.sub(r'[|]', '/', field.description or '')}{choose} |\n"


def table() -> str:
    """The whole page."""
    return HEAD + "".join(_row(name, field) for name, field in Settings.in_order().items())


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "settings.md").write_text(table())
