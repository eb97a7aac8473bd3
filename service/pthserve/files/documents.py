"""Documents: parse YAML and JSON from untrusted files, with limits on nodes, depth and length.

YAML aliases are refused: with aliases of aliases, a few hundred bytes can stand for billions of values.
"""

import json
from typing import Any

import yaml

from pthserve.text import quoted, whole

NODES = 50_000
"""Maximum number of values in a document, including keys: twice the labels of ImageNet-21k with indices."""
DEPTH = 20
"""Maximum nesting depth of mappings and lists."""
LENGTH = 10_000
"""Maximum number of characters of one value."""


def parse_yaml(text: str) -> Any:
    """Return the value of YAML `text`; raises ValueError with the line."""
    try:
        return yaml.load(text, Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{quoted(error.problem or error.context)}") from error
    except Exception as error:  # PyYAML raises various types for invalid values, such as of `!!timestamp`
        raise ValueError(f"cannot be parsed: {quoted(' '.join(str(error).split()))}") from error


def parse_json(text: str) -> Any:
    """Return the value of JSON `text`; raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("cannot be parsed: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"cannot be parsed: {quoted(error)}") from error


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, checked before memory is allocated for the values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node; raises MarkedYAMLError if a limit is exceeded."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(f"the alias *{quoted(event.anchor)} is not allowed here; write its value", event)
        if self._nodes > NODES:
            raise _refusal(f"there are more than {NODES} values", event)
        if self._depth == DEPTH:
            raise _refusal(f"it is nested more than {DEPTH} deep", event)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LENGTH:
            raise _refusal(f"a value has more than {LENGTH} characters", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Return a string, with the surrogate pairs of JSON escapes joined."""
        try:
            return whole(str(self.construct_scalar(node)))
        except ValueError as error:
            raise yaml.MarkedYAMLError(
                problem=str(error),
                problem_mark=node.start_mark,
            ) from error


Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_text)


def _refusal(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]
