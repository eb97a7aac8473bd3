"""Text from files and clients: repaired where it can be, and quoted so that it does no harm in a message."""

import unicodedata

QUOTED = 120
"""Maximum number of characters of one name or value in a message."""
MESSAGE = 2000
"""Maximum number of characters of a message."""

# Control and format characters (including changes of text direction), surrogates, line separators.
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def quoted(value: object, limit: int = QUOTED) -> str:
    """Make `value` safe for a message: one line, no control characters, shortened in the middle if long."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        head, tail = limit * 2 // 3, limit // 3
        text = f"{text[:head]}[... {len(text) - head - tail} characters ...]{text[-tail:]}"
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in _INVISIBLE:
        return character
    return ascii(character)[1:-1]


def whole(text: str) -> str:
    """Join surrogate pairs, with which JSON writes an emoji; raises ValueError for an unpaired one."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError(f"{quoted(text)} is not valid text: it contains an unpaired surrogate") from None


def counted(number: int, noun: str) -> str:
    """Return a number of things in words, such as "1 core" and "4 cores"."""
    return f"{number} {noun}{'s' if number > 1 else ''}"


def of_path(name: str) -> str:
    """Convert a file name to text; bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
