"""Crops are made from photos in the same way each time, and are spread over them."""

import io
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pthserve.errors import EngineError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import crop
from pthserve.images.spec import Spec
from pthserve.planning.crops import (
    BATCH,
    COUNT,
    Crops,
    Photo,
    images_of,
    of_package,
    photo,
    sample_images,
    samples,
    spaced,
)

from .one_layer import SPEC


def gradient(width: int, height: int) -> bytes:
    """A PNG of which each place has its own colour."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_same_photos_make_the_same_crops_and_the_first_are_the_whole_photos() -> None:
    one, other = (np.concatenate(list(of_package((), SPEC))) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(one) == len(of_package((), SPEC)) == COUNT >= 200
    np.testing.assert_array_equal(one[: len(samples())], sample_images(SPEC))


def test_a_second_pass_yields_the_same_batches() -> None:
    crops = of_package((), SPEC)
    first, second = list(crops), list(crops)
    assert [len(batch) for batch in first] == [BATCH] * (COUNT // BATCH)
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


def test_the_parts_of_a_photo_are_spread_over_it() -> None:
    crops = Crops([Photo("gradient", lambda: gradient(640, 480))], SPEC, "gradients")
    parts = np.concatenate(list(crops))
    assert len({part.tobytes() for part in parts}) > 0.95 * COUNT
    across, down = (parts[..., channel].mean((1, 2)) for channel in (0, 1))
    for middles in (across, down):
        assert middles.mean() == pytest.approx(127.5, abs=8)
        assert middles.std() > 15
    assert parts[..., 0].max() > 225  # the whole photo's centre crop goes up to 214


def test_what_is_known_of_the_photos_is_their_number_content_and_classes() -> None:
    data = [gradient(40, 30), gradient(30, 40)]
    photos = [Photo(str(number), lambda number=number: data[number], number) for number in range(2)]  # type: ignore[misc]
    origin = Crops(photos, SPEC, "gradients").origin
    assert (origin.photos, origin.labels) == (2, (0, 1))
    unlabelled = Crops([Photo(one.name, one.read) for one in photos], SPEC, "gradients").origin
    assert unlabelled.labels is None
    assert len({origin.digest, unlabelled.digest, Crops(photos[::-1], SPEC, "gradients").origin.digest}) == 3


def test_golden_images_come_before_the_samples(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(gradient(50, 50))
    crops = of_package([Golden(tmp_path / "1.png", 0)], SPEC)
    assert crops.source == "golden and sample images"
    assert crops.origin.photos == 1 + len(samples())
    np.testing.assert_array_equal(next(iter(crops))[0], crop(gradient(50, 50), SPEC, max_pixels=2**20))


def test_a_photo_of_one_pixel_has_parts_too() -> None:
    crops = Crops([Photo("dot", lambda: gradient(1, 1))], SPEC, "dots")
    assert np.concatenate(list(crops)).shape == (COUNT, *SPEC.image_shape)


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(gradient(50, 50)[:-60])
    with pytest.raises(EngineError, match=r"broken\.png: cannot be read as an image"):
        list(Crops([photo(tmp_path / "broken.png")], SPEC, "images"))
    with pytest.raises(EngineError, match=r"missing\.png: cannot be read"):
        list(Crops([photo(tmp_path / "missing.png")], SPEC, "images"))


def test_a_turned_photo_is_upright_where_the_model_wants_that(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(io.BytesIO(gradient(80, 60))).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned, plain = (
        np.concatenate(list(Crops([photo(tmp_path / "turned.jpg")], spec, "images"))).astype(int)
        for spec in (Spec(resize=40, crop=(32, 32), exif=True), SPEC)
    )
    assert abs(turned[0][::-1, ::-1] - plain[0]).max() <= 8  # the centre crop is half a pixel off
    right, left = turned[..., -1, 0].mean(), turned[..., 0, 0].mean()
    assert left > right + 50  # in all parts the gradient runs the other way


def test_images_are_found_among_other_files_and_in_subfolders(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.png").write_bytes(gradient(5, 5))
    (tmp_path / "a.png").write_bytes(gradient(5, 5))
    (tmp_path / "LICENSE").write_text("not an image")
    assert images_of(tmp_path) == [tmp_path / "a.png", tmp_path / "more" / "b.png"]


def test_of_many_evenly_spaced_ones_are_taken() -> None:
    assert spaced(range(5), 5) == [0, 1, 2, 3, 4]
    assert spaced(range(101), 5) == [0, 25, 50, 75, 100]


# --- the sample images


def test_the_sample_images_are_small_photos_that_ship_with_their_licence() -> None:
    readme = (resources.files("pthserve.images") / "samples" / "README.md").read_text()
    assert 4 <= len(samples()) == readme.count(".jpg`")
    assert all(len(data) <= 60_000 for data in samples())


@pytest.mark.parametrize("spec", [Spec(), Spec(mean=(0.5,), std=(0.5,)), Spec(resize=None, crop=(700, 30))])
def test_the_sample_images_come_as_a_model_sees_them(spec: Spec) -> None:
    images = sample_images(spec)
    assert images.shape == (len(samples()), *spec.image_shape)
    assert images.dtype == np.uint8
    assert len({Image.fromarray(image.squeeze()).tobytes() for image in images}) == len(images)
