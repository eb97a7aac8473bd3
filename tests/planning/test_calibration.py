"""Calibration photos are of a folder, enough of them, and divided by what they are for."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pthserve.errors import EngineError
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning import calibration, validation
from pthserve.planning.calibration import FEWEST, MOST

SPEC = Spec(crop=(16, 16))


def folder_of(path: Path, count: int) -> Path:
    """A folder whose photos are of one colour each, that of their number."""
    (path / "more").mkdir(parents=True)
    (path / "README").write_text("not an image")
    for number in range(count):
        place = path / "more" if number % 3 else path
        Image.new("RGB", (40, 30), (number % 256, number // 256, 99)).save(place / f"{number:04}.png")
    return path


def options(folder: Path | None, **more: Path) -> ModelOptions:
    return ModelOptions(calibration=folder, **more)


def numbers(pixels: NDArray[np.uint8]) -> set[int]:
    assert np.ptp(pixels, axis=(1, 2)).max() == 0
    return {int(one[0, 0, 0]) + 256 * int(one[0, 0, 1]) for one in pixels}


@pytest.mark.parametrize("few", [0, 1, FEWEST - 1])
def test_too_few_photos_are_refused_with_how_many_are_needed(few: int, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", few)
    with pytest.raises(EngineError, match=rf"(no|{few}) image.*at least {FEWEST} different photos") as error:
        calibration.read(options(folder), SPEC, 8)
    assert str(folder) in str(error.value)


def test_without_a_folder_what_is_needed_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"--calibration to a folder of at least {FEWEST} photos"):
        calibration.read(options(None), SPEC, 8)
    with pytest.raises(EngineError, match="no image"):
        calibration.read(options(tmp_path / "gone"), SPEC, 8)


def test_ranges_probes_and_what_is_compared_on_are_of_different_photos(tmp_path: Path) -> None:
    asked = options(folder_of(tmp_path, 40))
    found = calibration.read(asked, SPEC, 8)
    ranges, probes = numbers(found.ranges), numbers(found.probes)
    compared = numbers(np.concatenate(list(validation.crops(asked, (), SPEC, ()))))
    assert (len(ranges), len(probes), len(compared)) == (15, 5, 20)
    assert len(ranges | probes | compared) == 40
    assert found.photos == 20
    assert len(found.probes) == 8
    assert len(found.ranges) >= 200


def test_with_validation_images_all_photos_calibrate(tmp_path: Path) -> None:
    found = calibration.read(options(folder_of(tmp_path, 40), validation=tmp_path), SPEC, 40)
    assert len(numbers(found.ranges) | numbers(found.probes)) == found.photos == 40


@pytest.mark.slow
def test_of_many_photos_evenly_spaced_ones_are_used(tmp_path: Path) -> None:
    found = calibration.read(options(folder_of(tmp_path, 1000)), SPEC, 48)
    assert len(found.ranges) == MOST
    assert len(numbers(found.ranges)) == MOST
    assert max(numbers(found.ranges)) > 900


def test_a_photo_that_is_broken_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 30)
    (folder / "0000.png").write_bytes((folder / "0000.png").read_bytes()[:60])
    with pytest.raises(EngineError, match=r"0000\.png: cannot be read"):
        calibration.read(options(folder), SPEC, 8)
