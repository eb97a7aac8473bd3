"""Whether an engine agrees with a reference, and the sample images that are asked about."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image

from pthserve.images.spec import Spec
from pthserve.planning.agreement import compare, sample_images, samples
from pthserve.tasks.classification import CLASSIFICATION, softmax

from .one_layer import SPEC, TOLERANCE, engine


def test_an_engine_agrees_with_itself_and_not_with_another() -> None:
    images = sample_images(SPEC)
    reference = softmax(engine()(images))
    same = compare(CLASSIFICATION, engine(), images, reference, TOLERANCE)
    assert same.agrees
    assert same.difference < 1e-5
    other = compare(CLASSIFICATION, engine(noise=0.5), images, reference, TOLERANCE)
    assert not other.agrees
    assert other.difference > TOLERANCE
    assert len(other.disagreements) <= len(images)


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
