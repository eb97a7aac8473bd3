"""The web pages and their files, as a browser gets them. What they do there is in tests/browser."""

import gzip
import re
from pathlib import Path

import httpx
import pytest

from pthserve.http.site import PAGES, TYPES

from ..http_service import Service, serving
from ..serving.squares import Gate, squares

FOLDER = Path(__file__).parents[2] / "service" / "pthserve" / "http" / "site_files"
LIGHT = 85_000
"""Bytes that everything together may weigh; what one task needs is loaded for it alone."""
BY_ANOTHER_HOST = re.compile(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}""", re.IGNORECASE)


@pytest.fixture(scope="module")
def version(service: Service) -> str:
    found = re.search(r'"page/([0-9a-f]{16})/page\.js"', service.client.get("/").text)
    assert found
    return found[1]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_names_files_that_there_are(client: httpx.Client, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert len(named) >= 4
    for name in named:
        file = client.get(f"/{name}")
        assert file.status_code == 200
        assert file.headers["content-type"] == TYPES[name.rpartition(".")[2]]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_a_file_is_what_lies_in_the_folder_and_lasts(client: httpx.Client, version: str, name: str) -> None:
    file = client.get(f"/page/{version}/{name}")
    assert file.status_code == 200
    assert file.content.replace(version.encode() + b"/", b"") == (FOLDER / name).read_bytes()
    assert file.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_a_script_s_imports_are_there(client: httpx.Client, version: str) -> None:
    for script in FOLDER.glob("*.js"):
        for name in re.findall(r'(?:from |import\()"\./([^"]+)"', script.read_text()):
            assert client.get(f"/page/{version}/{name}").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/page/{version}/page.js", "/page/{version}/page.css"])
def test_each_answer_keeps_a_browser_on_this_service(client: httpx.Client, version: str, path: str) -> None:
    headers = client.get(path.format(version=version)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob:"
    assert {policy[rule] for rule in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in headers


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_script_or_style_of_its_own(client: httpx.Client, path: str) -> None:
    text = client.get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", text)


def test_nothing_names_another_host() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, which nothing loads
        assert not BY_ANOTHER_HOST.search(text), file.name


def test_a_page_is_sent_again_only_when_it_has_changed(client: httpx.Client) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/", headers={"if-none-match": '"another"'}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/page/{version}/page.css"])
def test_whoever_takes_gzip_gets_the_same_in_less(client: httpx.Client, version: str, path: str) -> None:
    path = path.format(version=version)
    plain = client.get(path, headers={"accept-encoding": "identity"})
    with client.stream("GET", path, headers={"accept-encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert plain.headers.get("content-encoding") is None
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 2


def test_head_is_answered_as_get_without_a_body(client: httpx.Client, version: str) -> None:
    for path in ("/", "/docs", f"/page/{version}/page.js"):
        head, got = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/page.js",
        "/page/0123456789abcdef/page.js",
        "/page/{version}/nothing.js",
        "/page/{version}/__init__.py",
        "/page/{version}/..%2fpage.py",
        "/page/{version}/../../page.py",
        "/index.html",
    ],
)
def test_there_is_no_other_file(client: httpx.Client, version: str, path: str) -> None:
    answer = client.get(path.format(version=version))
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_all_of_it_weighs_less_than_60_kb() -> None:
    weight = sum(file.stat().st_size for file in FOLDER.iterdir())
    assert weight < LIGHT, f"{weight} bytes"


def test_a_page_is_there_without_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a key\n")
    with serving(api_keys=keys) as service:
        assert service.client.get("/info").status_code == 401
        named = re.findall(r'"(page/[^"]+)"', service.client.get("/").text)
        for path in ("/", "/docs", *(f"/{name}" for name in named)):
            assert service.client.get(path).status_code == 200


def test_a_page_is_there_before_the_model() -> None:
    gate = Gate()
    with serving(lambda: (gate(None), squares())[1]) as service:
        try:
            assert service.client.get("/readyz").status_code == 503
            assert service.client.get("/").status_code == 200
        finally:
            gate.opened.set()


def test_pages_are_not_in_the_schema(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert not {path for path in paths if path in PAGES or path.startswith("/page")}
