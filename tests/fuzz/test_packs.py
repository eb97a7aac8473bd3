"""Packed models that are broken in any way, with sums that are right: each loads or is refused in words."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pthserve.errors import ModelError
from pthserve.images.preprocess import Pixels
from pthserve.loading import packed
from pthserve.loading.load import load
from pthserve.settings import Settings

from ..packs import tiny_pack
from .mutations import mangled, warped

SETTINGS = Settings(threads=1, tune_budget=0.0)
EACH = 20
"""One pack for so many of the requests that `--fuzz` asks for: each compiles a model."""


def spoil(pack: Path, dice: random.Random) -> str:
    """Break `pack` somewhere, and write its checksums again; what was done."""
    kind = dice.choices(("manifest", "text", "array", "file", "sums"), (60, 15, 15, 7, 3))[0]
    file = pack / packed.MANIFEST
    if kind == "manifest":
        manifest: Any = json.loads(file.read_text())
        for _ in range(dice.choice((1, 1, 2, 4))):
            manifest = warped(dice, manifest)
        file.write_text(json.dumps(manifest))
    elif kind == "text":
        file.write_bytes(mangled(dice, file.read_bytes()))
    elif kind == "array":
        file = pack / dice.choice((packed.IMAGES, packed.PROBABILITIES))
        file.write_bytes(mangled(dice, file.read_bytes()) if dice.random() < 0.5 else array(dice))
    elif kind == "file":
        file = dice.choice([path for path in sorted(pack.rglob("*")) if path.is_file()])
        file.unlink()
    (pack / packed.SUMS).write_text(packed.lines(packed.sums(pack)))
    if kind == "sums":
        file = pack / packed.SUMS
        file.write_bytes(mangled(dice, file.read_bytes()))
    return f"{kind}: {file.relative_to(pack)}"


def array(dice: random.Random) -> bytes:
    """A file of `numpy.save`, of any type and shape."""
    kind = dice.choice((np.uint8, np.float32, np.float64, np.complex64, "U3", "datetime64[s]", np.bool_))
    file = io.BytesIO()
    np.save(file, np.zeros(dice.choices((0, 1, 2, 3, 5, 32), k=dice.randrange(5)), kind))
    return file.getvalue()


def refusal(pack: Path, images: Pixels) -> str:
    """Why `pack` is refused; empty where it loads and answers."""
    try:
        model = load(str(pack), SETTINGS)
        assert model.forward(images).shape == (len(images), len(model.labels))
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_a_broken_pack_is_refused_in_words_or_answers(
    tmp_path: Path, seed: int, pytestconfig: pytest.Config
) -> None:
    made = tmp_path / "made"
    tiny_pack(made)
    images, _ = packed.read(made).proof()
    refused = []
    count = max(100, pytestconfig.getoption("fuzz") // EACH)
    for number in range(count):
        pack = Path(shutil.copytree(made, tmp_path / "pack"))
        done = spoil(pack, random.Random(f"{seed} {number}"))
        try:
            words = refusal(pack, images)
        except Exception as error:
            raise AssertionError(f"pack {number} of the run {seed}, {done}: {error!r}") from error
        if words:
            refused.append(done)
            assert str(pack) in words or "no engine can run this model" in words, (number, done, words)
            assert ".cpp" not in words, (number, done, words)
            assert len(words) < 4000, (number, done, words)
        shutil.rmtree(pack)
    assert 0 < len(refused) < count, refused
