"""Compiled graphs, kept in a folder for later starts, and used only while they are as they were written.

compiled/KEY/*.blob         what OpenVINO compiled, under names that OpenVINO gives
compiled/KEY/*.blob.sha256  the SHA-256 of each
compiled/KEY/lock           held by whoever reads or writes in the folder

OpenVINO uses what it finds without a check: a damaged page changes the answers, and it reports nothing.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pthserve.files.locks import Lock
from pthserve.files.private_folder import private
from pthserve.files.regular_files import sha256

if TYPE_CHECKING:
    import openvino

COMPILED = "compiled"
"""The folder in a cache folder for compiled graphs."""
_SAMPLE = 1024
"""Bytes of each constant that count for the key of a graph."""
_log = logging.getLogger(__name__)


def usable(cache_dir: Path) -> Path | None:
    """The folder for compiled graphs in `cache_dir`; None, with a warning, where others may write to it.

    Whoever may write there decides what is computed.
    """
    folder = cache_dir / COMPILED
    if (trouble := private(folder)) is not None:
        _log.warning("%s: compiled models are not cached: %s", folder, trouble)
        return None
    return folder


@contextmanager
def checked(folder: Path, graph: "openvino.Model", config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What to add to `config` to compile `graph` by way of `folder`; {} where it cannot be used.

    Within the block the folder of this graph is locked and holds no compiled graph but those that are as they
    were written. Those that the block adds count from then on.
    """
    own = folder / _key(graph, config)
    with ExitStack() as held:
        whole = None
        try:
            held.enter_context(_lock(own))
            whole = _without_damaged(own)
        except OSError as error:
            _log.warning("%s: compiled models are not cached: %s", own, error.strerror)
        yield {} if whole is None else {"CACHE_DIR": str(own)}
        with suppress(OSError):  # what has no SHA-256 is removed by the next
            for blob in set() if whole is None else set(own.glob("*.blob")) - whole:
                _sum(blob).write_text(sha256(blob), "ascii")


def _lock(folder: Path) -> Lock:
    """The lock of `folder`, which is created if it is missing; raises OSError."""
    if (trouble := private(folder)) is not None:
        raise OSError(0, trouble)
    return Lock(folder / "lock")


def _without_damaged(folder: Path) -> set[Path]:
    """The compiled graphs in `folder`, once those that are not as they were written are removed."""
    whole = set()
    for blob in folder.glob("*.blob"):
        if not blob.is_symlink() and _written(blob) == sha256(blob):
            whole.add(blob)
            continue
        _log.warning("%s: is damaged, or was not written to its end; the model is compiled again", blob)
        _sum(blob).unlink(missing_ok=True)
        blob.unlink()
    return whole


def _written(blob: Path) -> str | None:
    try:
        return _sum(blob).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _sum(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.sha256")


def _key(graph: "openvino.Model", config: Mapping[str, Any]) -> str:
    """A name for the folder of `graph`, so that few others are checked with it.

    Two graphs with one key share a folder and no more: OpenVINO's own names are of the whole graph.
    """
    digest = hashlib.sha256(repr(sorted(config.items())).encode())
    for node in graph.get_ordered_ops():
        shapes = [str(output.get_partial_shape()) for output in node.outputs()]
        digest.update(f"{node.get_type_name()} {shapes}".encode())
        if node.get_type_name() == "Constant":
            digest.update(node.get_data().reshape(-1)[:_SAMPLE].tobytes()[:_SAMPLE])
    return digest.hexdigest()[:16]
