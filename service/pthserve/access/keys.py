"""Keys: the API keys from a file, which may change while the service runs."""

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pthserve.errors import PthserveError, Unauthorized
from pthserve.files import regular_files

log = logging.getLogger(__name__)

CHECK_INTERVAL = 1.0
"""Seconds between checks for a changed file."""
SETTLED = 2.0
"""Seconds without a change after which a last line without a newline counts as complete."""
MAX_BYTES = 2**20
"""Maximum size of the file in bytes."""

_State = tuple[int, int, int, int, int]
"""Device, inode, size and times of a file, by which a change is detected."""


class Keys:
    """The keys in a file, one per line. Empty lines and lines that start with `#` are ignored.

    The file is read again when it changes. If that fails, the keys read before stay in use; an empty file
    rejects all requests. A last line without a newline counts only once the file has not changed for a while,
    since it may still be being written. Keys are kept as SHA-256 digests only.

    Raises:
        PthserveError: At the start, the file cannot be read or contains no key.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._checked = self._changed = clock()
        self._digests: tuple[bytes, ...] = ()
        self._unfinished = False
        self._seen: _State | None = None
        try:
            self._read()
        except OSError as error:
            raise PthserveError(f"{file}: the API keys cannot be read: {error.strerror}") from error
        if not self._digests and not self._unfinished:
            raise PthserveError(f"{file}: contains no API key; write one key per line")

    def owner(self, offered: Iterable[bytes]) -> str:
        """Return a name for the key that one of `offered` is; the name does not reveal the key.

        All keys are compared, each in constant time, so that the duration reveals nothing about them.

        Raises:
            Unauthorized: None of them is a key.
        """
        self._refresh()
        owner = ""
        for key in offered:
            digest = hashlib.sha256(key).digest()
            if [hmac.compare_digest(digest, known) for known in self._digests].count(True):
                owner = digest.hex()[:16]
        if not owner:
            raise Unauthorized(
                "this service needs an API key: send one of its keys as `Authorization: Bearer KEY` or "
                "`X-API-Key: KEY`"
            )
        return owner

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_INTERVAL:
            return
        self._checked = now
        try:
            state = _state(self._file.stat())
        except OSError:
            state = None
        if state == self._seen and not self._unfinished:
            return
        if state != self._seen:
            self._changed = now
        try:
            self._read()
        except OSError as error:
            if state != self._seen:
                log.warning(
                    "%s: the API keys cannot be read: %s; the keys read before stay in use",
                    self._file,
                    error.strerror,
                )
            self._seen = state
        else:
            log.info("%s: loaded %d API keys", self._file, len(self._digests))

    def _read(self) -> None:
        """Read the keys. The next check notices a change during reading."""
        text, status = _content(self._file)
        lines = text.splitlines(keepends=True)
        ended = not lines or lines[-1].endswith((b"\n", b"\r"))
        age = max(self._clock() - self._changed, time.time() - status.st_mtime)
        self._unfinished = not ended and age < SETTLED
        if self._unfinished:
            lines.pop()
        keys = {line.strip() for line in lines}
        self._digests = tuple(
            hashlib.sha256(key).digest() for key in keys if key and not key.startswith(b"#")
        )
        self._seen = _state(status)


def _content(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file and its status before it was read; raises OSError."""
    with regular_files.open_regular(path) as file:
        status = os.fstat(file.fileno())
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise OSError(0, f"is larger than {MAX_BYTES} bytes")
    return text, status


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
