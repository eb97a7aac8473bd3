"""An upgrade is not noticed by those who are being served."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..shared import until
from .load import Load
from .release import SLIM, SMALL, Release, merged

pytestmark = pytest.mark.usefixtures("reachable")

REQUESTS = 2000
"""At least so many are sent during an upgrade."""
# Two pods; one of them is replaced at a time.
TWO = merged(SMALL, SLIM, {"replicas": 2})


def test_no_request_is_lost_when_the_image_changes(
    image: Callable[[str], str],
    another_tag: str,
    models: Path,
    claim: Callable[[Path], str],
    release: Release,
) -> None:
    image("slim")
    weights = {"weights": {"source": "pvc", "file": "one", "pvc": {"existingClaim": claim(models)}}}
    release.upgrade(TWO, weights)
    before = {pod.metadata.uid for pod in release.until_ready(2)}

    with Load(release.address) as sent:
        sent.until_more(REQUESTS // 10)
        release.upgrade(TWO, weights, {"image": {"tag": another_tag}})
        after = release.until_ready(2)
        sent.until_more(max(REQUESTS - len(sent.answers), 200))
    print(f"new image: {sent}")

    assert not before & {pod.metadata.uid for pod in after}
    assert {pod.spec.containers[0].image for pod in after} == {f"localhost/pthserve:{another_tag}"}
    assert not sent.faults


@pytest.mark.parametrize(
    ("variant", "suffix"),
    [
        pytest.param("slim", "", id="packed"),
        pytest.param("full", ".pth", id="bare", marks=pytest.mark.long),
    ],
)
def test_no_request_is_lost_when_the_weights_change(
    image: Callable[[str], str],
    models: Path,
    claim: Callable[[Path], str],
    release: Release,
    variant: str,
    suffix: str,
) -> None:
    image(variant)
    weights = {
        "image": {"variant": variant},
        "weights": {"source": "pvc", "pvc": {"existingClaim": claim(models)}},
    }
    release.upgrade(TWO, weights, {"weights": {"file": f"one{suffix}"}})

    with Load(release.address) as sent:
        sent.until_more(REQUESTS // 10)
        (old,) = sent.digests
        release.upgrade(TWO, weights, {"weights": {"file": f"two{suffix}"}})
        release.until_ready(2)
        (new,) = until(lambda: sent.digests.keys() - {old}, seconds=60, what="answers by the new weights")
        sent.until_more(max(REQUESTS - len(sent.answers), 1000))
    print(f"new weights, {variant}: {sent}; by digest {dict(sent.digests)}")

    assert not sent.faults
    assert {answer.digest for answer in sent.answers[-100:]} == {new}


def test_weights_that_cannot_be_served_leave_the_old_ones_in_service(
    image: Callable[[str], str], models: Path, claim: Callable[[Path], str], release: Release
) -> None:
    image("slim")
    weights = {"weights": {"source": "pvc", "pvc": {"existingClaim": claim(models)}}}
    release.upgrade(TWO, weights, {"weights": {"file": "one"}})
    before = {pod.metadata.name for pod in release.until_ready(2)}

    with Load(release.address) as sent:
        release.upgrade(TWO, weights, {"weights": {"file": "nowhere"}}, wait=False)
        message = until(release.complaints, seconds=120, what="a pod's complaint")
        sent.until_more(500)
        release.helm("rollback", release.name, "1", "--namespace", release.namespace, "--wait")
    print(f"weights that are not there: {sent}")

    assert "nowhere" in message
    assert {pod.metadata.name for pod in release.until_ready(2)} == before
    assert not sent.faults
    assert len(sent.digests) == 1
