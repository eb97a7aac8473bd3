"""Text that others wrote is shown on one line, without control characters, and not at length."""

import pytest

from pthserve.errors import WeightsError
from pthserve.text import MESSAGE, QUOTED, of_path, quoted, whole


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("résumé 猫 \U0001f431", "résumé 猫 \U0001f431"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;title\x07\x1b[31m", r"\x1b]0;title\x07\x1b[31m"),
        ("right \u202e left", r"right \u202e left"),
        ("half \ud83d", r"half \ud83d"),
        ("line\u2028line", r"line\u2028line"),
        ("", ""),
    ],
)
def test_what_would_act_on_a_terminal_or_a_log_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert quoted(text) == shown


def test_long_text_keeps_its_ends_and_says_how_much_was_left_out() -> None:
    shown = quoted("a" * 10_000_000 + "z")
    assert shown.startswith("aaa")
    assert shown.endswith("z")
    assert "[... 9999881 characters ...]" in shown
    assert len(shown) < QUOTED + 40


def test_every_error_is_one_line_of_a_bounded_length() -> None:
    message = str(WeightsError("first\n" + "x" * 10**6 + "\x1b[2J save it again"))
    assert message.isprintable()
    assert message.startswith(r"first\n")
    assert message.endswith("save it again")
    assert len(message) < MESSAGE + 40


def test_a_surrogate_pair_is_joined_and_half_of_one_is_refused() -> None:
    assert whole("cat \ud83d\udc31") == "cat \U0001f431"
    for half in ("\ud83d", "\udc31\ud83d", "a\udcff"):
        with pytest.raises(ValueError, match="unpaired surrogate"):
            whole(half)


def test_a_file_name_that_is_not_utf_8_is_shown_with_a_replacement() -> None:
    assert of_path(b"caf\xe9".decode("utf-8", "surrogateescape")) == "caf\N{REPLACEMENT CHARACTER}"
    assert of_path("käse") == "käse"
