"""Text from files and clients: repaired where it can be, and quoted so that it does no harm in a message."""

import unicodedata

QUOTED = 120
"""Most characters of one name or value that a message quotes."""
MESSAGE = 2000
"""Most characters of a whole message."""

# Controls, formats (among them those that turn the direction of text), surrogates, separators of lines.
_UNSHOWN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def quoted(value: object, most: int = QUOTED) -> str:
    """`value` as a message may quote it: one line, no control characters, and its middle left out if long."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > most:
        head, tail = most * 2 // 3, most // 3
        text = f"{text[:head]}[... {len(text) - head - tail} characters ...]{text[-tail:]}"
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in _UNSHOWN:
        return character
    return ascii(character)[1:-1]


def whole(text: str) -> str:
    """`text` with surrogate pairs, by which JSON writes an emoji, joined; ValueError where one is alone."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError(f"{quoted(text)} is not valid text: it contains an unpaired surrogate") from None


def of_path(name: str) -> str:
    """A file's name as text; bytes of it that are no UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
