"""Keys: the API keys in a file, which may change while the service runs."""

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

LOOK_EVERY = 1.0
"""Seconds between two looks at whether the file has changed."""
SETTLED = 2.0
"""Seconds without a change after which a last line without a newline is taken for whole."""
LARGEST = 2**20
"""Bytes of the file."""

_State = tuple[int, int, int, int, int]
"""What changes when a file does: its place, size and times."""


class Keys:
    """The keys in `file`, one a line; empty lines and those that begin with `#` do not count.

    It is read again when it changes. Where that fails, the keys that were read last hold; an empty file lets
    nobody in. A line is a key once it ends in a newline, or once the file has stood unchanged for a while:
    the beginning of a key that is still being written is none. Keys are held as SHA-256 digests only.
    Raises PthserveError where the file cannot be read, or holds no key, at the start.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._looked = self._changed = clock()
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
        """Which key one of `offered` is, as a name that gives nothing away; raises Unauthorized.

        Every key is compared, and each in constant time: how long it takes says nothing about any of them.
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
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
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
        """Take the keys from the file. A change while it is read is met by the next look."""
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
    """The bytes of a file, and its status from before they were read; raises OSError unless it is a file."""
    with regular_files.open_regular(path) as file:
        status = os.fstat(file.fileno())
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise OSError(0, f"is larger than {LARGEST} bytes")
    return text, status


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
