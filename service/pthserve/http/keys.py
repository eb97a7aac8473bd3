"""Keys: the API keys in a file, which may change while the service runs."""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pthserve.errors import PthserveError, Unauthorized

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks at whether the file has changed."""


class Keys:
    """The keys in `file`, one a line; empty lines and those that begin with `#` do not count.

    It is read again when it changes. Where that fails, the keys that were read last hold; an empty file lets
    nobody in. Keys are held as SHA-256 digests only.
    Raises PthserveError where the file cannot be read, or holds no key, at the start.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._seen = self._look()
        self._looked = clock()
        try:
            self._digests = _digests(file.read_bytes())
        except OSError as error:
            raise PthserveError(f"{file}: the API keys cannot be read: {error.strerror}") from error
        if not self._digests:
            raise PthserveError(f"{file}: there is no API key in it; write one a line")

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
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._digests = _digests(self._file.read_bytes())
        except OSError as error:
            log.warning(
                "%s: the API keys cannot be read: %s; those read last hold", self._file, error.strerror
            )
        else:
            log.info("%s: there are %d API keys now", self._file, len(self._digests))

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._file.stat()
        except OSError:
            return 0, 0, 0
        return found.st_ino, found.st_size, found.st_mtime_ns


def _digests(text: bytes) -> tuple[bytes, ...]:
    lines = {line.strip() for line in text.splitlines()}
    return tuple(hashlib.sha256(line).digest() for line in lines if line and not line.startswith(b"#"))
