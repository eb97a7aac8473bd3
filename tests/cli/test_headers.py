"""--header: the same for every command that calls a server, and no value of it in any message."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..http_service import Service, serving
from ..serving.squares import png

pytestmark = pytest.mark.slow

KEY = "sécret-of-the-shop"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that asks for an API key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    with serving(api_keys=keys) as service:
        yield service


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(png())
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pthserve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def calls(url: str, image: Path) -> dict[str, tuple[str | Path, ...]]:
    """Each command that calls a server, without headers."""
    output = image.with_name("answer")
    return {
        "predict": ("predict", url, image),
        "bench": ("bench", url, image, "-c", "1", "-s", "0.1", "--warm-up", "0"),
        "fetch": ("fetch", f"{url}/info", "-o", output, "--sha256", "0" * 64),
    }


COMMANDS = ("predict", "bench", "fetch")


@pytest.mark.parametrize(
    "header", [f"X-API-Key: {KEY}", f"x-api-key:{KEY}", f"Authorization:  Bearer {KEY} "]
)
@pytest.mark.parametrize("command", ["predict", "bench"])
def test_a_guarded_service_answers_whoever_sends_its_key(
    command: str, header: str, guarded: Service, image: Path
) -> None:
    done = run(*calls(guarded.url, image)[command], "-H", header)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", [("-H", f"X-API-Key: {KEY}"), ("--authorization", f"Bearer {KEY}\n")])
def test_a_guarded_file_is_fetched_with_its_key(
    option: tuple[str, str], guarded: Service, tmp_path: Path
) -> None:
    content = guarded.client.get("/info", headers={b"X-API-Key": KEY.encode()}).content
    digest = hashlib.sha256(content).hexdigest()
    done = run("fetch", f"{guarded.url}/info", "-o", tmp_path / "info", "--sha256", digest, *option)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "info").read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
def test_without_its_key_or_with_a_wrong_one_the_service_refuses(
    command: str, guarded: Service, image: Path
) -> None:
    for headers in ((), ("-H", "X-API-Key: wrong-secret")):
        done = run(*calls(guarded.url, image)[command], *headers)
        assert done.returncode in {1, 3}
        assert "401" in done.stderr
        assert "wrong-secret" not in done.stderr + done.stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "header",
    [
        "secret",
        "se cret: value",
        ": secret",
        "X-API-Key:",
        "X-API-Key: secret\nX-More: secret",
        "X-API-Key: \x01secret",
        "Content-Length: 4secret",
        "transfer-encoding: secret",
    ],
)
def test_a_header_that_cannot_be_sent_is_wrong_usage_and_is_not_repeated(
    command: str, header: str, image: Path
) -> None:
    done = run(*calls("http://127.0.0.1:1", image)[command], "--header", header)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--header" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_header_for_a_model_that_runs_here_is_wrong_usage(image: Path) -> None:
    done = run("predict", "demo", image, "-H", "X-API-Key: secret")
    assert done.returncode == 2
    assert "needs the URL of a service" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (command, url)
        for command in COMMANDS
        for url in (
            "http://user:sec/secret@127.0.0.1:1/file",
            "http://user:secret@127.0.0.1:99999/file",
            "http://user:secret@[::1/file",
        )
    ]
    + [
        (command, "http://user:secret@127.0.0.1:1/file?key=secret#secret") for command in ("predict", "bench")
    ],
)
def test_no_message_repeats_what_is_secret_in_an_address(command: str, url: str, image: Path) -> None:
    call = calls("http://127.0.0.1:1", image)[command]
    done = run(call[0], url, *call[2:], "-H", "X-API-Key: secret")
    assert done.returncode in {1, 2, 3}
    assert "address" in done.stderr or "does not respond" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_report_does_not_repeat_what_is_secret_in_an_address(guarded: Service, image: Path) -> None:
    url = guarded.url.replace("//", "//user:secret@") + "/predict?top=2&key=secret"
    call = calls(url, image)["bench"]
    page = image.with_name("report.html")
    done = run(*call, "--json", "--report", page, "-H", f"X-API-Key: {KEY}")
    assert done.returncode == 0, done.stderr
    assert guarded.url in done.stdout
    assert "secret" not in done.stdout + page.read_text()
