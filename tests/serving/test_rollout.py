"""A release compares its answers with those of another release on the same live images."""

import itertools
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pthserve.engines.base import Images, Logits
from pthserve.errors import PthserveError
from pthserve.intervals import wilson
from pthserve.loading.model import Model
from pthserve.serving.rollout import CONCURRENT, HEADER, WAITING, api_key

from ..http_service import Service, serving
from ..relay import relay
from ..shared import until
from .squares import BLUE, GREEN, RED, Gate, Squares, pixels, png, squares

COLOURS = (RED, GREEN, BLUE)
_numbers = itertools.count(1)
"""Metrics are counted for all tests of a process: each model has a digest of its own."""


class ColourBlind(Squares):
    """Takes green for red."""

    def __call__(self, batch: Images) -> Logits:
        return super().__call__(batch) * np.array([2, 0, 1], np.float32) + np.array([1, 0, 0], np.float32)


class NotFinite(Squares):
    """Answers only red images with numbers, once it is broken."""

    broken = False

    def __call__(self, batch: Images) -> Logits:
        logits = super().__call__(batch)
        if self.broken:
            logits[logits.argmax(1) != 0] = np.nan
        return logits


def model(engine: Squares | None = None, **fields: Any) -> Model:
    return squares(engine, digest=f"{next(_numbers):064x}", **fields)


@contextmanager
def canary_of(url: str, new: Model | None = None, **settings: Any) -> Iterator[Service]:
    """A service that compares its answers to all images with those at `url`."""
    with serving(new or model(), compare_with=url, compare_share=1.0, **settings) as canary:
        yield canary


@contextmanager
def both(
    new: Model | None = None, old: Model | None = None, **settings: Any
) -> Iterator[tuple[Service, Service]]:
    """A service, and another one that compares its answers with those of the first."""
    with serving(old or model()) as stable, canary_of(stable.url, new, **settings) as canary:
        yield stable, canary


def send(service: Service, image: bytes) -> httpx.Response:
    return service.client.post("/predict", content=image, headers={"content-type": "image/png"})


def rollout(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/info").json()["rollout"]
    return found


def comparisons(service: Service, images: int) -> dict[str, Any]:
    """The comparisons of the only pair of models, once there are as many as `images`."""

    def done() -> dict[str, Any] | None:
        pairs = rollout(service)["comparisons"]
        return pairs[0] if pairs and pairs[0]["images"] >= images else None

    return until(done, f"{images} comparisons") or {}


def failures(service: Service, reason: str) -> int:
    return int(until(lambda: rollout(service)["failures"].get(reason), f"the failure {reason}"))


def ask_one_by_one(service: Service, images: int) -> None:
    """Send images of all colours, so slowly that each is compared."""
    for number in range(images):
        assert send(service, png(COLOURS[number % 3])).status_code == 200
        comparisons(service, number + 1)


@pytest.mark.slow
def test_a_model_that_computes_the_same_agrees_on_every_image() -> None:
    with both() as (stable, canary):
        ask_one_by_one(canary, 6)
        found = comparisons(canary, 6)
        digests = [service.client.get("/info").json()["digest"] for service in (canary, stable)]
        assert [found["digest"], found["other"]] == digests
        interval = wilson(6, 6)
        assert interval is not None
        assert found | {"images": 6, "agreed": 6, "difference": 0.0} | interval._asdict() == found
        labels = f'digest="{digests[0]}",other="{digests[1]}"'
        counted = f'pthserve_rollout_comparisons_total{{{labels},result="agreed",weights="other"}}'
        assert canary.metric(counted) == 6
        shown = canary.metric(f'pthserve_rollout_agreement{{bound="lower",{labels}}}')
        assert shown == pytest.approx(interval.lower)
        assert canary.metric(f"pthserve_rollout_difference_count{{{labels}}}") == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "share"),
    [({"engine": ColourBlind()}, 1 / 3), ({"labels": ("green", "blue", "red")}, 0.0)],
    ids=["another decision", "permuted labels"],
)
def test_a_model_that_decides_otherwise_disagrees(new: dict[str, Any], share: float) -> None:
    with both(model(**new)) as (_, canary):
        ask_one_by_one(canary, 9)
        found = comparisons(canary, 9)
        assert found["agreed"] <= 9 * max(share, 2 / 3 if share else 0)
        assert found["upper"] < 1
        assert found["lower"] < 0.4


@pytest.mark.slow
def test_it_is_counted_where_only_the_card_has_changed() -> None:
    """The weights are the same: nobody has trained anything, and each difference is a question."""
    old = model()
    new = squares(digest=old.digest, labels=("green", "blue", "red"))
    with both(new, old) as (_, canary):
        ask_one_by_one(canary, 3)
        pair = f'digest="{old.digest}",other="{old.digest}"'
        name = "pthserve_rollout_comparisons_total"
        assert canary.metric(f'{name}{{{pair},result="disagreed",weights="same"}}') == 3


@pytest.mark.slow
def test_an_image_that_the_new_model_fails_on_counts_as_disagreement() -> None:
    engine = NotFinite()
    with both(model(engine)) as (_, canary):
        engine.broken = True
        assert send(canary, png(RED)).status_code == 200
        comparisons(canary, 1)
        assert send(canary, png(GREEN)).status_code == 500
        found = comparisons(canary, 2)
        assert (found["images"], found["agreed"]) == (2, 1)


@pytest.mark.slow
def test_pixels_are_compared_and_tensors_are_counted_as_failures() -> None:
    with both() as (_, canary):
        image = pixels(BLUE)
        for name, data, datatype in (
            ("pixels", image.ravel().tolist(), "UINT8"),
            ("tensor", [0.5] * (3 * 32 * 32), "FP32"),
        ):
            shape = [1, *image.shape] if name == "pixels" else [1, 3, 32, 32]
            body = {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}
            reply = canary.client.post("/v2/models/squares/infer", json=body)
            assert reply.status_code == 200, reply.text
        assert comparisons(canary, 1)["agreed"] == 1
        assert failures(canary, "tensor") == 1


@pytest.mark.slow
def test_a_comparison_is_answered_but_neither_counted_as_a_prediction_nor_compared_again() -> None:
    """Two releases that compare with each other: no request goes back and forth."""
    with ExitStack() as services:
        address = services.enter_context(relay())
        old, new = model(labels=("r", "g", "b")), model(labels=("r", "g", "b"))
        stable = services.enter_context(canary_of(f"http://127.0.0.1:{address.port}", old))
        canary = services.enter_context(canary_of(stable.url, new))
        address.target = canary.port
        before = canary.metric('pthserve_predictions_total{label="r"}')
        for number in range(5):
            assert send(canary, png(RED)).status_code == 200
            comparisons(canary, number + 1)
        assert rollout(stable)["comparisons"] == []
        assert rollout(stable)["failures"] == {}
        # Both services count in the same registry: the canary's own answers are counted, and only those.
        assert canary.metric('pthserve_predictions_total{label="r"}') - before == 5


@pytest.mark.slow
def test_a_release_that_is_told_to_compare_with_itself_stops_and_shows_nothing() -> None:
    """As of the pods that a controller promotes, with the settings that they had as a canary."""
    with relay() as address, canary_of(f"http://127.0.0.1:{address.port}") as canary:
        address.target = canary.port
        assert send(canary, png()).status_code == 200
        assert failures(canary, "itself") == 1
        for _ in range(5):
            assert send(canary, png()).status_code == 200
        found = rollout(canary)
        assert (found["comparisons"], found["failures"]) == ([], {"itself": 1})
        digest = canary.client.get("/info").json()["digest"]
        assert (
            f'digest="{digest}"' not in canary.client.get("/metrics").text.partition("rollout_agreement{")[2]
        )


@pytest.mark.slow
def test_a_release_that_cannot_be_reached_is_a_failure_and_no_agreement() -> None:
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        with canary_of(f"http://127.0.0.1:{bound.getsockname()[1]}") as canary:
            assert send(canary, png()).status_code == 200
            assert failures(canary, "connection") == 1
            assert rollout(canary)["comparisons"] == []


@pytest.mark.slow
def test_an_error_of_the_other_release_is_a_failure_and_no_agreement() -> None:
    engine = NotFinite()
    with both(old=model(engine)) as (_, canary):
        engine.broken = True
        assert send(canary, png(GREEN)).status_code == 200
        assert failures(canary, "status") == 1
        assert rollout(canary)["comparisons"] == []


@pytest.mark.slow
def test_a_slow_release_delays_no_answer_and_holds_few_images() -> None:
    gate = Gate()
    engine = Squares()
    with both(old=model(engine), deadline=2.0) as (stable, canary):
        engine.hook = gate
        try:
            for _ in range(2 * (CONCURRENT + WAITING)):
                assert send(canary, png()).status_code == 200
            assert canary.client.get("/info").json()["rollout"]["failures"] == {}
            assert failures(canary, "timeout") >= 1
            assert rollout(canary)["comparisons"] == []
        finally:
            gate.opened.set()
        # What waited longest is compared now; what found no place is not.
        until(lambda: sum(rollout(canary)["failures"].values()) >= CONCURRENT, "all that ran")
        assert stable.client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_the_key_for_the_other_release_is_sent_to_it_and_logged_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, key, wrong = (tmp_path / name for name in ("keys", "key", "wrong"))
    keys.write_text("secret-of-the-stable-release\n")
    key.write_text("# for comparisons\n\nsecret-of-the-stable-release\nanother-secret\n")
    wrong.write_text("another-secret\n")
    with serving(model(), api_keys=keys) as stable:
        with canary_of(stable.url, compare_api_key=key, log_level="debug") as canary:
            assert send(canary, png()).status_code == 200
            assert comparisons(canary, 1)["agreed"] == 1
        with canary_of(stable.url, compare_api_key=wrong, log_level="debug") as canary:
            assert send(canary, png()).status_code == 200
            assert failures(canary, "status") == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"\n# none\n", b"two words\n", b"caf\xc3\xa9\n"])
def test_a_file_without_a_key_is_refused_at_the_start(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(PthserveError, match=re.escape(str(file))) as refused:
        api_key(file)
    assert "two" not in str(refused.value)
    with pytest.raises(PthserveError, match="cannot be read"):
        api_key(tmp_path / "none")


def test_a_request_with_the_header_is_answered_as_any_other(client: httpx.Client) -> None:
    plain, marked = (
        client.post("/predict", files={"image": png(BLUE)}, headers=headers).json()
        for headers in ({}, {HEADER: "another process"})
    )
    assert {**plain, "timing": None} == {**marked, "timing": None}
