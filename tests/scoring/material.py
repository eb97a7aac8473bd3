"""What the tests of scoring share: folders of images, a small model, and reading the results."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from PIL import Image

import pthserve
from pthserve.loading.model import Model
from pthserve.scoring.request import Request
from pthserve.scoring.run import Summary, score

from ..linear import noise, png
from ..packs import tiny_pack


def photos(folder: Path, count: int, *, first: int = 0) -> Path:
    """`count` small PNG files in `folder`, each another image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:04}.png").write_bytes(png(noise(number, 24, 32)))
    return folder


def jpeg(width: int, height: int) -> bytes:
    """A grey JPEG."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (120, 120, 120)).save(file, "JPEG")
    return file.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """A tar archive of `files`, in their order; mode: as `tarfile.open` has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pack(folder: Path, seed: int = 0) -> Path:
    """A packed model that is small and quick."""
    tiny_pack(folder, seed)
    return folder


def loaded(folder: Path, **options: Any) -> Model:
    """The packed model in `folder`, in this process."""
    return pthserve.load(folder, **options)


def scored(model: Model, source: Path | str, output: Path | str, **fields: Any) -> Summary:
    """Score one source, quietly."""
    return score(model, Request((str(source),), str(output), **fields), lambda *_: None)


def rows(output: Path | str) -> list[dict[str, Any]]:
    """All rows of a data set, by key."""
    found = ds.dataset(str(output), format="parquet").to_table().to_pylist()
    return sorted(found, key=lambda row: row["key"])


def command(*arguments: str | Path) -> list[str]:
    """`pthserve score`, for a process of its own."""
    return [sys.executable, "-m", "pthserve", "score", *map(str, arguments)]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a command, with its cache in `folder`."""
    return {**os.environ, "PTHSERVE_TUNE_BUDGET": "0", "XDG_CACHE_HOME": str(folder / "cache"), **more}


def run(folder: Path, *arguments: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run `pthserve score` to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, env=environment(folder, **more)
    )
