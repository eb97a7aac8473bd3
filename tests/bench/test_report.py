"""The report: one file with its curve."""

from html.parser import HTMLParser

from pthserve.bench.load import Point, Round
from pthserve.bench.report import render


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def rounds() -> list[Round]:
    return [
        Round(Point(clients=clients), 1.0, 10.0, [0.02 * clients] * 100 * clients, cpu=0.05)
        for clients in (1, 2, 4)
    ]


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render("http://127.0.0.1:8000", 1, rounds())
    for tag, attributes in Elements(page).found:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not attributes.keys() & {"src", "href", "xlink:href", "srcset"}
    assert "url(" not in page
    assert "@import" not in page


def test_each_round_is_a_dot_on_each_curve_and_a_row() -> None:
    found = Elements(render("http://127.0.0.1:8000", 1, rounds())).found
    assert sum(tag == "circle" for tag, _ in found) == 3 * 3
    assert sum(tag == "polyline" for tag, _ in found) == 3
    assert sum(tag == "tr" for tag, _ in found) == 1 + 3


def test_more_throughput_lies_to_the_right_and_more_latency_higher() -> None:
    dots = [attributes for tag, attributes in Elements(render("x", 1, rounds())).found if tag == "circle"][:3]
    across = [float(dot["cx"] or "nan") for dot in dots]
    up = [float(dot["cy"] or "nan") for dot in dots]
    assert across == sorted(set(across))
    assert up == sorted(set(up), reverse=True)


def test_the_table_says_the_numbers() -> None:
    text = Elements(render("x", 1, rounds())).text
    assert "2 clients" in text
    assert "40.0 ms" in text


def test_an_address_cannot_smuggle_markup_in() -> None:
    assert "<b>" not in render("http://x/<b>", 1, rounds())


def test_a_service_that_never_answered_has_a_report_too() -> None:
    assert "no responses" in render("x", 1, [Round(Point(), 1.0, 10.0)])
