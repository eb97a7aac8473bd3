"""Model archives as torch-model-archiver writes them, in its three formats."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMATS = ("default", "zip-store", "tgz", "no-archive")


def manifest(**model: Any) -> bytes:
    """A MANIFEST.json; model: what differs in its `model`."""
    described = {
        "modelName": "pets",
        "serializedFile": "pets.pth",
        "handler": "image_classifier",
        "modelVersion": "1.0",
        **model,
    }
    return json.dumps(
        {
            "createdOn": "26/11/2026 03:00:00",
            "runtime": "python",
            "model": {key: value for key, value in described.items() if value is not None},
            "archiverVersion": "0.12.0",
        }
    ).encode()


def archive(folder: Path, files: Mapping[str, bytes], archive_format: str = "default", **model: Any) -> Path:
    """An archive of `files`, called `pets`, in `folder`. The manifest comes last, as the archiver has it."""
    every = {**files, "MAR-INF/MANIFEST.json": manifest(**model)}
    if archive_format == "no-archive":
        for name, content in every.items():
            (folder / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "pets" / name).write_bytes(content)
        return folder / "pets"
    if archive_format == "tgz":
        with tarfile.open(folder / "pets.tar.gz", "w:gz") as tar:
            for name, content in every.items():
                entry = tarfile.TarInfo(f"pets/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return folder / "pets.tar.gz"
    mode = zipfile.ZIP_STORED if archive_format == "zip-store" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(folder / "pets.mar", "w", mode) as made:
        for name, content in every.items():
            made.writestr(name, content)
    return folder / "pets.mar"
