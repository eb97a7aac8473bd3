"""JSON numbers: cut long lists of numbers and long strings out of the JSON of a request before it is parsed.

A parser would make millions of Python objects of the numbers, and would block all other threads while it
copies a string of many megabytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from secrets import token_hex

import orjson

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.inference_protocol.bounds import MAX_TEXT
from pthserve.inference_protocol.numbers import Text

CUT = token_hex(16)
"""The placeholder for what was cut out. A field `data` with numbers becomes a field of this name with their
index in `numbers`; a long string becomes this name followed by its index in `strings`. It is random in each
process, so that no client can send a placeholder of its own."""

MAX_BYTES = 2**16
"""Maximum number of bytes outside strings and numbers: each may become an object of 100 bytes or more."""
MAX_QUOTES = 2**16
"""Maximum number of quotation marks, including escaped ones."""
_RUN = 2**10
"""Number of backslashes before a quotation mark from which the JSON is refused."""


@dataclass(slots=True)
class Skeleton:
    """JSON with its arrays named `data` and its long strings cut out.

    This class only locates them. Whether they and the rest are valid JSON is checked when they are parsed.

    Attributes:
        json: The JSON as received.
        text: The rest of the JSON, with a placeholder for each part that was cut out; see CUT.
        numbers: The arrays named `data`.
        strings: Start and end in `json`, quotes included, of each string longer than MAX_TEXT bytes.

    Raises:
        TooLarge: The rest is too large to be parsed.
        MalformedRequest: A string ends in too many backslashes.
    """

    json: bytes
    text: bytes = field(init=False)
    numbers: list[Text] = field(default_factory=list, init=False)
    strings: list[tuple[int, int]] = field(default_factory=list, init=False)
    _restored: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        parts = [b""]
        at = outside = 0
        for start, end in self._strings():
            if parts[-1] == b'"data"' and (cut := self._array(at, start)):
                parts[-1] = b'"%b":%d' % (CUT.encode(), len(self.numbers))
                self.numbers.append(cut)
                at = cut.end
            outside += start - at
            if outside > MAX_BYTES:
                raise TooLarge(f"the JSON has more than {MAX_BYTES} bytes outside strings and `data`")
            parts += (self.json[at:start], self._shortened(start, end))
            at = end
        self.text = b"".join(parts)

    def string(self, text: str) -> str:
        """Return the string for which `text` is the placeholder, or `text`; raises MalformedRequest."""
        if not text.startswith(CUT):
            return text
        start, end = self.strings[int(text[len(CUT) :])]
        self._restored += 1
        quoted = memoryview(self.json)[start:end]
        if self.json.find(b"\\", start, end) < 0:
            try:
                return str(quoted[1:-1], "ascii")  # such as base64; many times as fast as the parser
            except UnicodeDecodeError:
                pass
        try:
            return str(orjson.loads(quoted))
        except orjson.JSONDecodeError as error:
            raise MalformedRequest(f"the JSON cannot be parsed: {error}") from error

    def check(self) -> None:
        """Raise MalformedRequest if a long string was not read with `string`: no field may hold it."""
        if self._restored != len(self.strings):
            raise MalformedRequest(
                f"the JSON has a string of more than {MAX_TEXT} bytes that is neither an image nor in `data`;"
                " no id, name or parameter is that long"
            )

    def _shortened(self, start: int, end: int) -> bytes:
        if end - start - 2 <= MAX_TEXT:
            return self.json[start:end]
        self.strings.append((start, end))
        return b'"%b%d"' % (CUT.encode(), len(self.strings) - 1)

    def _strings(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each string, then an empty one at the end of the JSON."""
        opened, at = -1, 0
        for _ in range(MAX_QUOTES):
            quote = self.json.find(b'"', at)
            at = quote + 1
            if quote < 0:
                yield len(self.json), len(self.json)
                return
            if opened < 0:
                opened = quote
            elif not self._escaped(quote):
                yield opened, at
                opened = -1
        raise TooLarge(f"the JSON has more than {MAX_QUOTES} quotation marks")

    def _escaped(self, quote: int) -> bool:
        before = self.json[max(0, quote - _RUN) : quote]
        run = len(before) - len(before.rstrip(b"\\"))
        if run == _RUN:
            raise MalformedRequest(f"a string of the JSON ends in {_RUN} backslashes or more")
        return run % 2 == 1

    def _array(self, start: int, end: int) -> Text | None:
        """Return the array between `start`, the end of a name, and `end`, the start of the next string.

        None if there is no complete array between them.
        """
        opening = self.json.find(b"[", start, end)
        if opening < 0 or self.json[start:opening].strip() != b":":
            return None
        brace = self.json.find(b"}", opening, end)
        closing = self.json.rfind(b"]", opening, end if brace < 0 else brace) + 1
        brackets = [self.json.count(bracket, opening, closing) for bracket in (b"[", b"]")]
        # An array with a string among its elements is not complete here.
        complete = brackets[0] == brackets[1] > 0
        return Text(self.json, opening, closing) if complete else None
