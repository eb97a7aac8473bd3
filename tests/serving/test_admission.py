"""Who gets in."""

import pytest

from pthserve.errors import Overloaded, TooLarge
from pthserve.serving.admission import Admission


def ten_milliseconds_each(images: int) -> float:
    return 0.01 * images


def test_a_permit_comes_back_whatever_happens() -> None:
    admission = Admission(4, ten_milliseconds_each)
    with admission.admit(3, 10):
        assert admission.inflight == 3
    with pytest.raises(KeyboardInterrupt), admission.admit(3, 10):
        raise KeyboardInterrupt
    assert admission.inflight == 0


def test_without_a_permit_nobody_gets_in_and_none_is_taken() -> None:
    admission = Admission(4, ten_milliseconds_each)
    with admission.admit(3, 10):
        with pytest.raises(Overloaded, match="3 images are queued"), admission.admit(2, 10):
            pytest.fail("there was no permit")
        assert admission.inflight == 3
        with admission.admit(1, 10):
            assert admission.inflight == 4


def test_a_wait_that_outlasts_the_deadline_is_not_begun() -> None:
    admission = Admission(1000, ten_milliseconds_each)
    with admission.admit(50, 10):
        with pytest.raises(Overloaded):
            admission.check(1, deadline=0.5)
        admission.check(1, deadline=1.0)


def test_an_idle_service_lets_in_one_that_it_cannot_answer_in_time() -> None:
    """Or a measurement taken at a bad moment would keep everybody out for ever."""
    with Admission(4, lambda images: 100.0).admit(1, deadline=0.1):
        pass


def test_retry_after_is_when_what_is_ahead_is_done() -> None:
    admission = Admission(100, ten_milliseconds_each)
    with admission.admit(100, 10), pytest.raises(Overloaded) as refused:
        admission.check(1, 10)
    assert refused.value.retry_after == pytest.approx(1.0)


def test_more_images_than_there_are_permits_never_get_in() -> None:
    with pytest.raises(TooLarge, match="the limit is 4"):
        Admission(4, ten_milliseconds_each).check(5, 10)
