"""Reading: the bytes of one image, from this machine or from an address, with several attempts."""

import errno
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from pthserve.addresses import is_address
from pthserve.errors import NotFound, PthserveError, TooLarge, WeightsError
from pthserve.files import regular_files
from pthserve.sources import web
from pthserve.sources.reference import STORES, WEB, Reference, parse
from pthserve.sources.transfer import Interrupted, retried

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_OF_THE_IMAGE = frozenset(
    (
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
        *(errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENAMETOOLONG),
    )
)
"""Errors of the operating system about one file; any other, such as one of the disk, ends the run."""


class Reader:
    """Reads images for a run. Any thread may call it.

    folders: Local folders that must exist until the run ends.
    skip_unreachable: Whether an image counts as unreadable if its web server cannot be reached after several
    attempts; otherwise the run ends.
    """

    def __init__(self, folders: Sequence[Path] = (), *, skip_unreachable: bool = False) -> None:
        self._folders = folders
        self._skip_unreachable = skip_unreachable
        self._lock = threading.Lock()
        self._web: httpx.Client | None = None
        self._stores: dict[tuple[str, str], ObjectStore] = {}

    def __call__(self, place: str, most: int) -> bytes:
        """Return the bytes of the file at a path or address.

        Args:
            most: Maximum number of bytes.

        Raises:
            RequestError: This file cannot be read: it does not exist, is too large, or must not be read.
            PthserveError: The source failed, so other files could not be read either.
        """
        if not is_address(place):
            return self._local(place, most)
        try:
            reference = parse(place)
            assert reference is not None
            if reference.scheme not in (*WEB, *STORES):
                raise NotFound(f"{reference}: images are read from https://, s3://, gs:// and az://")
        except WeightsError as error:
            raise NotFound(str(error)) from None
        try:
            if reference.scheme in WEB:
                return retried(lambda: self._from_web(reference, most), str(reference))
            return retried(lambda: self._from_store(reference, most), str(reference))
        except WeightsError as error:
            failed = isinstance(error.__cause__, Interrupted)
            of_web = reference.scheme in WEB
            if of_web and (self._skip_unreachable or not failed):
                raise NotFound(str(error)) from None
            hint = (
                "; run the same command again to continue, or give --skip-unreachable if it is gone for good"
                if of_web
                else "; run the same command again to continue"
            )
            raise PthserveError(f"{error}{hint if failed else ''}") from error

    def close(self) -> None:
        """Close all connections."""
        if self._web is not None:
            self._web.close()

    def _from_web(self, reference: Reference, most: int) -> bytes:
        with self._lock:
            if self._web is None:
                # Images are data, of which nothing is executed. No Authorization is sent: a list may name any
                # server.
                self._web = web.client("https://localhost", plain=True)
            client = self._web
        with web.open_file(client.stream, reference.text, 0, None) as stream:
            if stream.total is not None and stream.total > most:
                raise _too_large(most)
            content = bytearray()
            for block in stream.blocks:
                content += block
                if len(content) > most:
                    raise _too_large(most)
            return bytes(content)

    def _from_store(self, reference: Reference, most: int) -> bytes:
        import obstore

        from pthserve.sources import object_stores

        with self._lock:
            place = (reference.scheme, reference.host)
            store = self._stores.get(place) or self._stores.setdefault(
                place, object_stores.connected(reference)
            )
        with object_stores.errors(reference):
            try:
                reply = obstore.get(store, reference.path)
            except FileNotFoundError:
                raise NotFound("there is no such object") from None
            if reply.meta["size"] > most:
                raise _too_large(most)
            return bytes(reply.bytes())

    def _local(self, place: str, most: int) -> bytes:
        try:
            return regular_files.read(Path(place), most)
        except OSError as error:
            lost = next((one for one in self._folders if not one.is_dir()), None)
            if lost is not None:
                raise PthserveError(
                    f"{lost}: the folder no longer exists; run the same command again when it does"
                ) from error
            if error.errno == errno.EFBIG:
                raise _too_large(most) from None
            if error.errno in _OF_THE_IMAGE:
                raise NotFound(f"the file cannot be read: {error.strerror}") from None
            raise PthserveError(
                f"{place}: cannot be read: {error.strerror or error}; run the same command again to continue"
            ) from error


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the file is larger than {most} bytes (--max-bytes)")
