"""Pickles: what one names, read without running it, so that a refusal can say why and what to do."""

import json
import pickletools
import re
import shlex
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from pthserve.text import quoted

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module")
"""Keys under which training scripts put the state dict, the surest first."""

# torch.save writes five pickles in a row in its legacy format; raw storage follows.
_PICKLES = 5
_IDENTIFIER = re.compile(r"[\w.]+ [\w.]+")
_REFUSED = re.compile(r"GLOBAL (\S+)")
_TENSORS = re.compile(
    r"collections\.|torch\.(_utils|storage|nn\.parameter)\.|torch\.[a-z0-9]+$|torch\.\w+Storage$"
)


@dataclass(frozen=True, slots=True)
class Scan:
    """names: the globals, dotted, in order. strings: every string. mapping: whether the value that names the
    first global is a dict."""

    names: list[str] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    mapping: bool = False


def scan(stream: IO[bytes]) -> Scan:
    """What the pickles in `stream` name, up to the first byte that is no pickle."""
    names: list[str] = []
    strings: list[str] = []
    first = first_of_named = ""
    for opcode, text in _operations(stream):
        first = first or opcode
        if opcode in ("GLOBAL", "INST"):
            if not _IDENTIFIER.fullmatch(text):
                break
            names.append(_python3(*text.split(" ")))
        elif opcode == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif text:
            strings.append(text)
        if names:
            first_of_named = first_of_named or first
        if opcode == "STOP":
            first = ""
    return Scan(names, strings, first_of_named == "EMPTY_DICT" or names[:1] == ["collections.OrderedDict"])


def _python3(module: str, name: str) -> str:
    """The dotted name of a global; protocols up to 2 write the standard library's as Python 2 had them."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _operations(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Each opcode but framing, with the text it carries or takes from the memo, else ""."""
    memo: dict[object, str] = {}
    last = ""
    try:
        for _ in range(_PICKLES):
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name == "MEMOIZE":
                    memo[len(memo)] = last
                elif opcode.name.endswith("PUT"):
                    memo[argument] = last
                elif opcode.name not in ("PROTO", "FRAME"):
                    last = memo.get(argument, "") if opcode.name.endswith("GET") else ""
                    last = argument if isinstance(argument, str) else last
                    yield opcode.name, last
    except Exception:  # pickletools raises whatever broken bytes provoke
        return


def length(stream: IO[bytes], most: int) -> int:
    """How many bytes the pickles in `stream` take; what is beyond `most`, or no pickle, does not count."""
    reached = 0
    with suppress(Exception):  # pickletools raises whatever broken bytes provoke
        for _ in range(_PICKLES):
            for _opcode, _argument, position in pickletools.genops(stream):
                reached = position or 0
                if reached >= most:
                    return most
    return reached


def refusal(stream: IO[bytes], reason: str, name: str) -> str | None:
    """Why the safe unpickler, which gave `reason`, would not read `stream`; None if no global is to blame.

    name: the file's, for the line that re-saves it.
    """
    seen = scan(stream)
    told = _REFUSED.search(reason)
    foreign = next(
        (known for known in seen.names if told and known in (told[1], f"builtins.{told[1]}")),
        next((known for known in seen.names if not _TENSORS.match(known)), None),
    )
    if foreign is None:
        return None
    return (
        f"needs `{quoted(foreign)}`, and to load that could run code, so nothing was loaded. If you trust "
        f"the file, re-save its weights where it was made: {resave(name, _part(seen), trusted=True)}"
    )


def _part(seen: Scan) -> str:
    """The Python that takes the state dict out of `LOADED`, as far as the pickle's strings tell."""
    if not seen.mapping:
        return "LOADED.state_dict()"
    if wrapper := next((key for key in WRAPPERS if key in seen.strings), None):
        return f'LOADED["{wrapper}"]'
    return "{k: v for k, v in LOADED.items() if torch.is_tensor(v)}"


def resave(name: str, part: str, *, trusted: bool = False) -> str:
    """The shell line that saves one part of the file `name` beside it.

    part: Python in which `LOADED` stands for what the file holds. trusted: whether its code may run.
    """
    loaded = f'torch.load({json.dumps(name)}, map_location="cpu", weights_only={not trusted})'
    target = json.dumps(f"{name.rpartition('.')[0] or name}-weights.pth")
    code = f"import torch; torch.save({part.replace('LOADED', loaded)}, {target})"
    return f"python -c {shlex.quote(code)}"
