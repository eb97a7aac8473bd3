"""docs/models.md, the generated table of what becomes of each architecture's state dict."""

import re
from pathlib import Path

from pthserve.zoos.candidates import CATALOGUES

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
ROWS = {
    name: outcomes.strip(" |").split(" | ")
    for name, outcomes in re.findall(r"^\| `([\w/.]+)` \| (.*)$", PAGE, re.MULTILINE)
}
"""Name to what becomes of it: bare, wrapped, prefixed, with other classes."""


def test_the_page_has_every_architecture() -> None:
    """Else: make scoreboard."""
    assert list(ROWS) == [f"{library.name}/{name}" for library in CATALOGUES for name in library.names()]


def test_no_architecture_is_taken_for_another_without_a_warning() -> None:
    assert {outcome for outcomes in ROWS.values() for outcome in outcomes} <= {
        "served",
        "by option",
        "assumed",
        "refused",
    }


def test_nearly_all_are_served_or_settled_by_one_option() -> None:
    settled = [name for name, outcomes in ROWS.items() if set(outcomes) <= {"served", "by option"}]
    assert len(settled) >= 0.95 * len(ROWS)


def test_torchvisions_are_all_served() -> None:
    torchvisions = [outcomes for name, outcomes in ROWS.items() if name.startswith("torchvision/")]
    assert all(set(outcomes) == {"served"} for outcomes in torchvisions)
