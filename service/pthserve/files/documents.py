"""Documents: YAML and JSON that others wrote, parsed within bounds on nodes, depth and length.

A few hundred bytes of YAML can stand for billions of values, by aliases of aliases; so there are none.
"""

import json
from typing import Any

import yaml

from pthserve.text import quoted, whole

NODES = 50_000
"""Most values in a document, keys among them: twice the labels of ImageNet-21k with their indices."""
DEPTH = 20
"""Most mappings and lists inside each other."""
LENGTH = 10_000
"""Most characters of one value."""


def parse_yaml(text: str) -> Any:
    """What `text` says; raises ValueError, whose message names the line."""
    try:
        return yaml.load(text, Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{quoted(error.problem or error.context)}") from error
    except Exception as error:  # PyYAML fails on odd values of `!!timestamp` and others as it may
        raise ValueError(f"cannot be parsed: {quoted(' '.join(str(error).split()))}") from error


def parse_json(text: str) -> Any:
    """What `text` says; raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("cannot be parsed: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"cannot be parsed: {quoted(error)}") from error


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which gives up before a document becomes large."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node; raises MarkedYAMLError where a bound is reached."""
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
        """A string, with the surrogate pairs of JSON's escapes joined."""
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
