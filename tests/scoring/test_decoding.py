"""decoding: the pixels that the model needs, and a common limit of memory."""

import threading

import numpy as np
import pytest

from pthserve.errors import PthserveError, TooLarge, UnsupportedImage
from pthserve.images.cost import Cost
from pthserve.images.preprocess import Prepared, crop, pending
from pthserve.scoring.decoding import Decoding

from ..linear import SPEC, Linear, linear, noise, png
from ..shared import until

MEMORY = 2**26


def made(memory: int = MEMORY) -> Decoding:
    return Decoding(linear(Linear(SPEC, 5)), memory)


def test_the_pixels_are_those_of_the_preprocessing_and_the_size_is_that_of_the_image() -> None:
    image = png(noise(0))
    pixels, size = made()(image)
    np.testing.assert_array_equal(pixels, crop(image, SPEC, max_pixels=10**6))
    assert size == (64, 48)


def test_an_image_that_needs_more_than_all_memory_is_refused_and_another_is_decoded() -> None:
    with pytest.raises(TooLarge, match="decode_memory"):
        made(1000)(png(noise(0)))
    one = made()
    with pytest.raises(TooLarge), one.within(Cost(MEMORY + 1, 0)):
        pass
    assert one(png(noise(0)))


def test_the_memory_of_an_image_is_free_again_even_if_the_image_is_broken() -> None:
    one = made()
    for _ in range(3):
        with pytest.raises(UnsupportedImage):
            one(b"no image")
    with pytest.raises(ZeroDivisionError), one.within(Cost(MEMORY, 0)):
        1 / 0  # noqa: B018
    with one.within(Cost(MEMORY, 0)):
        pass


def test_an_image_waits_for_memory_until_another_is_decoded() -> None:
    one = made()
    inside = threading.Event()

    def second() -> None:
        with one.within(Cost(MEMORY // 2, 0)):
            inside.set()

    waiting = threading.Thread(target=second)
    with one.within(Cost(MEMORY // 2 + 1, 0)):
        waiting.start()
        assert not inside.wait(0.1)
    until(inside.is_set)
    waiting.join()


def test_nobody_waits_for_memory_once_it_is_closed() -> None:
    one = made()
    with one.within(Cost(MEMORY, 0)):
        one.close()
        with one.within(Cost(MEMORY, 0)):
            pass


def test_a_machine_without_memory_is_an_error_of_the_run_that_names_the_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = linear(Linear(SPEC, 5))
    image = pending(png(noise(0)), model.spec, max_pixels=10**6)

    def none() -> Prepared:
        raise MemoryError

    monkeypatch.setattr("pthserve.scoring.decoding.pending", lambda *_, **__: image._replace(pixels=none))
    with pytest.raises(PthserveError, match="--decode-memory"):
        Decoding(model, MEMORY)(b"")
