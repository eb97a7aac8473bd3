"""addresses: what is printed of an address holds no secret."""

import pytest

from pthserve.addresses import printable


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000/predict", "http://127.0.0.1:8000/predict"),
        ("https://user:secret@models.example/a.pth?sig=secret#secret", "https://models.example/a.pth"),
        ("https://secret@models.example", "https://models.example"),
        ("https://user:sec@secret@models.example/a", "https://models.example/a"),
        ("http://[::1]:9/a@b", "http://[::1]:9/a@b"),
    ],
)
def test_scheme_host_port_and_path_are_printed(url: str, shown: str) -> None:
    assert printable(url) == shown


@pytest.mark.parametrize(
    "url", ["http://user:sec/ret@host/", "http://user:sec#ret@host/", "//", "secret", "http://[secret"]
)
def test_an_address_that_cannot_be_parsed_is_not_repeated(url: str) -> None:
    assert printable(url) == "the given address"
