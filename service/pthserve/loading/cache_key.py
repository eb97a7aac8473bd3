"""Cache key: a digest of all that decides what the pack of a model is. PyTorch is not needed for it.

Files count by their content. What only decides how a pack is run, such as the number of threads, is left out.
"""

import hashlib
import json
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pthserve
from pthserve.engines.cpu import cpu_flags
from pthserve.files import card, weights
from pthserve.files.card import Card
from pthserve.files.regular_files import sha256
from pthserve.loading import own_code
from pthserve.options import ModelOptions

FORMAT = 1
"""Of an entry; a change of it makes all entries of before unknown."""

BESIDE = ("config.json", "preprocessor_config.json", "adapter_config.json")
"""Files beside the weights that are looked for; whether they are there decides, too."""

LIBRARIES = (
    *("pthserve", "torch", "torchvision", "openvino", "nncf", "numpy", "pillow"),
    *("safetensors", "timm", "transformers"),
)
"""Whose versions decide what is built."""

NOT_OF_A_PACK = frozenset(
    (
        *("name", "device", "engine", "threads", "max_batch", "max_pixels"),
        *("tune_budget", "plan", "cache_dir", "max_download", "require_signature"),
    )
)
"""Options that decide only how a pack is run, or whether there is one."""


@dataclass(frozen=True, slots=True)
class Key:
    """What an entry of the cache is called, and what was read for it.

    card: of the model. files: SHA-256 by path of the files that count. code: what runs code of the user's,
    `package.module:callable`, or "".
    """

    digest: str
    card: Card
    files: Mapping[Path, str]
    code: str


def key(source: Path, options: ModelOptions) -> Key:
    """The key of the model that `source` names.

    Raises:
        ModelError: the card is not valid, or it or the weights are missing. OSError: a file cannot be read.
    """
    described = card.read(source)
    architecture = options.architecture or described.architecture or ""
    code = architecture if ":" in architecture else ""
    files = {file: sha256(file) for file in _files(described)}
    content = {
        "format": FORMAT,
        "card": _plain(described),
        "files": sorted((_relative(file, described.folder), digest) for file, digest in files.items()),
        "options": _options(options),
        "versions": {name: _version(name) for name in LIBRARIES},
        "code": own_code.digest(),
        "python": sys.version,
        "processor": [platform.machine(), *sorted(cpu_flags())],
        "installed": [*sys.path, *_installed()] if code else [],
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return Key(hashlib.sha256(text.encode()).hexdigest(), described, files, code)


def is_library(file: str) -> bool:
    """Whether `file` belongs to Python or to a package that is installed, whose version is in the key."""
    return file.startswith(_library_folders())


def _files(described: Card) -> Iterator[Path]:
    yield from weights.files_of(described.weights)
    for name in BESIDE:
        beside = described.weights.with_name(name)
        if beside.is_file():
            yield beside
    for golden in described.golden:
        yield golden.image
        if golden.class_map is not None:
            yield golden.class_map


def _plain(described: Card) -> dict[str, Any]:
    """The card, with paths relative to its folder."""
    values = asdict(described)
    del values["folder"]
    values["weights"] = _relative(described.weights, described.folder)
    values["stated"] = sorted(described.stated)
    for golden, one in zip(values["golden"], described.golden, strict=True):
        golden["image"] = _relative(one.image, described.folder)
        golden["class_map"] = one.class_map and _relative(one.class_map, described.folder)
    return values


def _relative(file: Path, folder: Path) -> str:
    return os.path.relpath(file, folder)


def _options(options: ModelOptions) -> dict[str, Any]:
    values = options.model_dump(mode="json", include=ModelOptions.model_fields.keys() - NOT_OF_A_PACK)
    values["precision"] = "int8" if options.precision == "int8" else ""  # others are chosen when it is run
    for name in ("calibration", "validation"):
        values[name] = _listing(getattr(options, name))
    return values


def _listing(images: Path | None) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file in a folder of images, of which there may be many.

    images: the folder, or a CSV file that names images in its own folder.
    """
    found = []
    folder = images.parent if images and images.is_file() else images
    for file in sorted(folder.rglob("*")) if folder else ():
        with suppress(OSError):
            seen = file.stat()
            found.append((_relative(file, folder or file), seen.st_size, seen.st_mtime_ns))
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@cache
def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_path(name) for name in names} | {str(Path(pthserve.__file__).parent)}
    return tuple(f"{Path(folder)}{os.sep}" for folder in folders)


def _installed() -> list[str]:
    """The packages that are installed, with their versions, as the names of their metadata folders say."""
    return sorted(
        entry.name
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        if os.path.isdir(folder)  # noqa: PTH112
        for entry in os.scandir(folder)
        if entry.name.endswith((".dist-info", ".egg-link", ".pth"))
    )
