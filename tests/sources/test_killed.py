"""Downloads that are killed at random: never half a file, resumed, and the right one in the end.

PTHSERVE_KILLS is how many of them are killed; the default keeps the test short.
"""

import fnmatch
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from .keys import authority
from .servers import FileServer, s3, serving

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PTHSERVE_KILLS", "5"))
SIZE, RATE = 24 * 2**20, 16 * 2**20
"""Bytes of the file, and bytes a second that a server sends."""


def _received(folder: Path) -> int:
    """Bytes of the file that have arrived: of its part, or of the whole on the way to its place."""
    sizes = [0]
    for inside, _, names in os.walk(folder):  # which ignores a folder that is just being removed
        for name in fnmatch.filter(names, "a.pth*"):
            with suppress(FileNotFoundError):  # it was just given another name
                sizes.append((Path(inside) / name).stat().st_size)
    return max(sizes)


def _fetch(address: str, output: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pthserve", "fetch", address, "-o", str(output)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE)


def _killed_until_done(address: str, folder: Path, environment: dict[str, str], kills: int) -> list[int]:
    """Fetch and kill, `kills` times or until the download ends; the bytes that were there at each kill."""
    output = folder / "a.pth"
    at: list[int] = []
    while len(at) < kills:
        before = _received(folder)
        with _fetch(address, output, environment) as process:
            while process.poll() is None and _received(folder) <= before:
                assert not output.exists() or output.stat().st_size == SIZE
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
        if output.exists():  # it came to its end before the signal
            break
        at.append(_received(folder))
        assert at[-1] >= before, "what had arrived was lost"
    return at


@pytest.mark.parametrize("source", ["https", "s3"])
def test_a_killed_download_goes_on_and_gives_the_right_file_or_none(source: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    served = tmp_path / "served" / "models"
    served.mkdir(parents=True)
    killed = rounds = 0
    certificate, context = authority(tmp_path)
    environment = {"SSL_CERT_FILE": str(certificate), "AWS_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    limit = ("--bwlimit", f"{RATE // 2**20}M")
    with (
        serving(FileServer(served, rate=RATE), context) as web,
        s3(served.parent, tmp_path / "s3.log", "key", "secret", *limit) as endpoint,
    ):
        environment["AWS_ENDPOINT_URL"] = endpoint
        address = f"{web.url}/a.pth" if source == "https" else "s3://models/a.pth"
        while killed < KILLS:
            content = random.randbytes(SIZE)
            (served / "a.pth").write_bytes(content)
            folder = tmp_path / f"round-{rounds}"
            folder.mkdir()
            killed += len(_killed_until_done(address, folder, environment, KILLS - killed))
            web.asked.clear()
            with _fetch(address, folder / "a.pth", environment) as last:
                assert last.wait() == 0, last.stderr and last.stderr.read()
            found = (folder / "a.pth").read_bytes()
            assert hashlib.sha256(found).digest() == hashlib.sha256(content).digest()
            assert [one.name for one in folder.iterdir()] == ["a.pth"]
            rounds += 1
    print(f"{killed} downloads were killed, and {rounds} files arrived")
