"""An inference's JSON without its numbers, of which a parser would make millions of objects.

It would also hold up every other thread while it copies a string of many megabytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from secrets import token_hex

import orjson

from pthserve.errors import MalformedRequest, TooLarge
from pthserve.inference_protocol.bounds import MAX_TEXT
from pthserve.inference_protocol.numbers import Text

CUT = token_hex(16)
"""The name that stands for `data` where numbers were cut out; its value is their place in `numbers`. A string
that was cut out is this name and its place in `strings`. It is another in each process, so that nobody can
name what is not there."""

MAX_BYTES = 2**16
"""Most bytes outside of strings and numbers: each may come to be an object of a hundred bytes and more."""
MAX_QUOTES = 2**16
"""Most quotation marks, escaped ones included."""
_RUN = 2**10
"""More backslashes than end any string."""


@dataclass(slots=True)
class Skeleton:
    """`json`, and of it `text`: what is left when `numbers` are cut out, the arrays that are called `data`.

    `strings` that are longer than MAX_TEXT are cut out, too: where each begins and ends, quotes included.
    Only where these lie is found here. What they are, and whether the rest is JSON at all, is for those who
    read them. Raises TooLarge where more is left than should be parsed, and MalformedRequest.
    """

    json: bytes
    text: bytes = field(init=False)
    numbers: list[Text] = field(default_factory=list, init=False)
    strings: list[tuple[int, int]] = field(default_factory=list, init=False)
    _put_back: int = field(default=0, init=False)

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
        """The string that `text` stands for, or `text` itself. Raises MalformedRequest where it is none."""
        if not text.startswith(CUT):
            return text
        start, end = self.strings[int(text[len(CUT) :])]
        self._put_back += 1
        quoted = memoryview(self.json)[start:end]
        if self.json.find(b"\\", start, end) < 0:
            try:
                return str(quoted[1:-1], "ascii")  # as base64 is; many times as fast as the parser
            except UnicodeDecodeError:
                pass
        try:
            return str(orjson.loads(quoted))
        except orjson.JSONDecodeError as error:
            raise MalformedRequest(f"the JSON cannot be parsed: {error}") from error

    def check(self) -> None:
        """Raise MalformedRequest if a string that was cut out was not put back: nobody asked for it."""
        if self._put_back != len(self.strings):
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
        """Where each string begins and ends, and behind the last an empty one where the text ends."""
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
        """The array between `start`, where a name has ended, and `end`, where the next string begins."""
        opening = self.json.find(b"[", start, end)
        if opening < 0 or self.json[start:opening].strip() != b":":
            return None
        brace = self.json.find(b"}", opening, end)
        closing = self.json.rfind(b"]", opening, end if brace < 0 else brace) + 1
        brackets = [self.json.count(bracket, opening, closing) for bracket in (b"[", b"]")]
        whole = (
            brackets[0] == brackets[1] > 0
        )  # or it ends behind the next string, which is one of its elements
        return Text(self.json, opening, closing) if whole else None
