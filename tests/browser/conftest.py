"""A real browser, and what must hold in every state of a page that it shows.

Chromium is Debian's, installed where root and apt are there. Where there is none the tests are skipped, and
fail under CI. A screenshot of each state is kept in $PTHSERVE_ARTEFACTS, or in artefacts/ beside this file.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)

from ..http_service import Service
from ..http_service import serving as serving_squares

ARTEFACTS = Path(os.environ.get("PTHSERVE_ARTEFACTS", Path(__file__).parent / "artefacts"))
DESK = {"width": 1280, "height": 860}
BAD = {"serious", "critical"}
"""Of axe-core's impacts; see https://github.com/dequelabs/axe-core/blob/develop/doc/issue_impact.md"""
PATIENCE = 30_000
"""Milliseconds after which what does not come is a failure."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


def _chromium() -> str | None:
    """The path of Debian's chromium; what keeps it from being installed is printed."""
    if found := shutil.which("chromium"):
        return found
    if os.getuid() == 0 and shutil.which("apt-get"):
        # It waits for whoever else installs packages: the cluster's tests run at the same time.
        packages = Path(__file__).parents[2] / "scripts/packages"
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run([packages, "chromium"], env=quiet, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr)
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    # Of the module and not of the session: while it lasts, no asyncio.run() works in this thread.
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    path = _chromium()
    if path is None:
        reason = "there is no chromium here: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    started = playwright.chromium.launch(executable_path=path, args=["--force-color-profile=srgb"])
    yield started
    started.close()


@pytest.fixture(scope="module")
def squares() -> Iterator[Service]:
    """A service with the squares' model, for tests that leave it as it is."""
    with serving_squares() as started:
        yield started


class Visit:
    """A person's tab: a page, and all that it asks for and complains of.

    name: of the test, for the screenshots.
    complaints: parts of console errors that the test is about; any other is a failure.
    """

    def __init__(self, page: Page, url: str, name: str) -> None:
        self.page = page
        self.url = url
        self.name = name
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._errors: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("filechooser", lambda _: None)  # from now on, and not some time after a test expects one
        page.context.on("request", self._ask)
        page.context.on("console", self._hear)
        page.context.on("weberror", lambda error: self._errors.append(str(error.error)))

    def _ask(self, request: Request) -> None:
        self.asked.append(request.url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(message.text)

    def look(self, state: str, *, whole: bool = True) -> None:
        """Keep a screenshot of this state, and hold it to axe-core's rules."""
        self.page.evaluate("document.fonts.ready")
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{self.name}-{state}.png", full_page=whole)
        found = Axe().run(self.page).response["violations"]
        bad = [
            f"{one['impact']}: {one['help']}: {[node['html'][:200] for node in one['nodes']]}"
            for one in found
            if one["impact"] in BAD
        ]
        assert not bad, "\n".join(bad)

    def show(self, *files: Path | dict[str, Any]) -> Locator:
        """Choose `files`; the first one's card."""
        given = [
            {"name": one.name, "mimeType": "image/jpeg", "buffer": one.read_bytes()}
            if isinstance(one, Path)
            else one
            for one in files
        ]
        self.page.locator("#files").set_input_files(given)  # type: ignore[arg-type]
        return self.page.locator("article").first

    def painted(self) -> None:
        """Wait until the page has painted what it was about to paint."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def answered(self, count: int = 1) -> Locator:
        """The cards, once `count` of them have an answer or an error."""
        done = self.page.locator("article:not(.asking):has(.timing:not([hidden]), .error:not(:empty))")
        done.nth(count - 1).wait_for()
        return self.page.locator("article")

    def close(self) -> None:
        """Leave; and say what must not have been."""
        self.page.wait_for_timeout(50)  # for what the page would still complain of
        self.page.context.close()
        host = urlsplit(self.url).netloc
        elsewhere = [url for url in self.asked if urlsplit(url).netloc not in ("", host)]
        assert not elsewhere, elsewhere
        assert any(urlsplit(url).netloc == host for url in self.asked)
        unexpected = [
            text for text in self._errors if not any(complaint in text for complaint in self.complaints)
        ]
        assert not unexpected, unexpected


Serve = Callable[..., Service]
Open = Callable[..., Visit]


def opened(visit: Open, service: Service, file: dict[str, Any], **about: Any) -> tuple[Visit, Locator]:
    """The page of a service with the answer for one image, and its card."""
    tab = visit(service.url, **about)
    expect(tab.page.locator("#state")).to_have_text("ready")
    card = tab.show(file)
    tab.answered()
    expect(card.get_by_role("alert")).to_be_hidden()
    return tab, card


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a service as `serving` does, which lasts until nobody looks at it any more."""
    with ExitStack() as stack:
        yield lambda *given, **settings: stack.enter_context(serving_squares(*given, **settings))


@pytest.fixture
def visit(browser: Browser, serve: Serve, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a service's page in a tab of its own, which is looked over when the test is at its end."""
    name = re.sub(r"[^\w.]+", "-", request.node.name.removeprefix("test_")).strip("-")
    opened: list[Visit] = []

    def _visit(url: str, path: str = "/", **about: Any) -> Visit:
        context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **about})
        visit = Visit(context.new_page(), url, name)
        opened.append(visit)
        visit.page.goto(url + path)
        return visit

    yield _visit
    for one in opened:
        one.close()
