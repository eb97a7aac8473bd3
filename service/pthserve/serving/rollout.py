"""Rollout: compare this release's answers with those of another release on the same live images.

A sample of the images that this process answers is sent to the other release's `/predict`. No live answer
waits for that, and a comparison that fails never counts as agreement.
"""

import asyncio
import io
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from pthserve.addresses import printable
from pthserve.errors import PthserveError
from pthserve.files import regular_files
from pthserve.intervals import Interval, wilson
from pthserve.metrics import (
    ROLLOUT_AGREEMENT,
    ROLLOUT_COMPARISONS,
    ROLLOUT_DIFFERENCE,
    ROLLOUT_FAILURES,
    remove_interval,
    show_interval,
)
from pthserve.serving.background import in_background
from pthserve.serving.prediction import Input, Prediction
from pthserve.serving.predictor import Predictor
from pthserve.settings import Settings
from pthserve.tasks.base import Compared, Task

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

HEADER = "x-pthserve-comparison"
"""The header of a comparison request: the id of the process that sends it. The answer is not counted in the
metrics of predictions, and not compared again."""
CONCURRENT = 4
"""Maximum number of comparisons at the same time."""
WAITING = 16
"""Maximum number of images that wait for a comparison; further images are not compared."""
MAX_HELD = 64 * 2**20
"""Maximum memory in bytes of all images and answers that wait or are compared; likewise."""
MAX_ANSWER = 64 * 2**20
"""Maximum size in bytes of an answer of the other release."""
MAX_PAIRS = 8
"""Maximum number of pairs of digests whose agreement is kept; the oldest is dropped."""
MAX_KEYS = 2**20
"""Maximum size in bytes of the file with the API key."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class _Failed(Exception):
    """An image could not be compared; reason: the label of the metric."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """An image to compare. answer: this release's, or None if its forward pass failed. size: in bytes."""

    image: Input
    answer: Any
    digest: str
    task: Task
    size: int


@dataclass(slots=True)
class _Tally:
    """The comparisons of one pair of models."""

    images: int = 0
    agreed: int = 0
    difference: float = 0.0

    @property
    def agreement(self) -> Interval:
        """The share of images on which both agree."""
        found = wilson(self.agreed, self.images)
        assert found is not None, "there is a tally only after a comparison"
        return found


class Rollout:
    """Compares the answers of `predictor` with those of the release at `settings.compare_with`.

    If the address leads to this process itself, comparisons end: they would show nothing.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        assert settings.compare_with is not None
        self._predictor = predictor
        self._address = printable(settings.compare_with)
        self._url = f"{settings.compare_with.rstrip('/')}/predict"
        self._share = settings.compare_share
        self._key_file = settings.compare_api_key
        self._deadline = settings.deadline
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(WAITING)
        self._held = 0
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._failures: dict[str, int] = {}
        self._failing = ""
        self._is_own = False
        self._record()

    async def run(self) -> None:
        """Compare until cancelled."""
        try:
            with self._predictor.observers.during(self._offer):
                async with await in_background(partial(_client, self._deadline)) as client:
                    await asyncio.gather(*(self._work(client) for _ in range(CONCURRENT)))
        except Exception:  # the service goes on without comparisons, which no rollout takes for agreement
            log.exception("no answers can be compared with those of %s", self._address)

    def _offer(self, images: Sequence[Input], predictions: Sequence[Prediction] | None) -> None:
        if self._is_own:
            return
        for number, image in enumerate(images):
            if random.random() < self._share:  # noqa: S311
                self._put(image, None if predictions is None else predictions[number])

    def _put(self, image: Input, prediction: Prediction | None) -> None:
        model = self._predictor.current if prediction is None else prediction.model
        assert model is not None
        answer = None if prediction is None else prediction.answer
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            self._fail(_Failed("tensor", "a tensor that a client has preprocessed is not an image"))
            return
        size = (len(image) if isinstance(image, bytes) else image.nbytes) + _size(answer)
        if self._waiting.full() or self._held + size > MAX_HELD:
            return
        self._held += size
        self._waiting.put_nowait(_Waiting(image, answer, model.digest, model.task, size))

    async def _work(self, client: "httpx.AsyncClient") -> None:
        while True:
            one = await self._waiting.get()
            try:
                async with asyncio.timeout(self._deadline):
                    await self._compare(client, one)
            except TimeoutError:
                self._fail(_Failed("timeout", f"there was no answer within {self._deadline:g} s"))
            except _Failed as failure:
                self._fail(failure)
            except Exception as error:
                self._fail(_Failed("answer", f"{type(error).__name__}: {error}"))
            finally:
                self._held -= one.size
                del one  # while the next one is awaited

    async def _compare(self, client: "httpx.AsyncClient", one: _Waiting) -> None:
        if self._is_own:
            return
        content, headers = await in_background(partial(self._request, one.image))
        text = await self._ask(client, content, headers, one.task.comparison_query)
        other, compared = await in_background(partial(_compared, one, text))
        self._count(one.digest, other, compared)

    def _request(self, image: Input) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a comparison request; called in a thread."""
        headers = {
            HEADER: self._predictor.instance,
            "content-type": "application/octet-stream",
            "x-request-timeout": f"{self._deadline:g}",
        }
        if self._key_file is not None:
            try:
                headers["x-api-key"] = api_key(self._key_file)
            except PthserveError as error:
                raise _Failed("connection", str(error)) from None
        if isinstance(image, bytes):
            return image, headers
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        return file.getvalue(), headers

    async def _ask(
        self, client: "httpx.AsyncClient", content: bytes, headers: dict[str, str], query: str
    ) -> bytes:
        """Return the other release's answer as JSON."""
        import httpx

        url = f"{self._url}?top=1&{query}" if query else f"{self._url}?top=1"
        try:
            async with client.stream("POST", url, content=content, headers=headers) as reply:
                if reply.status_code == httpx.codes.CONFLICT:
                    raise _Failed("itself", "the address leads to this process itself")
                if reply.status_code != httpx.codes.OK:
                    raise _Failed("status", f"it answers with the status {reply.status_code}")
                text = bytearray()
                async for piece in reply.aiter_bytes():
                    text += piece
                    if len(text) > MAX_ANSWER:
                        raise _Failed("answer", f"its answer has more than {MAX_ANSWER} bytes")
                return bytes(text)
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.HTTPError as error:  # whose message may repeat the address with what is secret in it
            raise _Failed("connection", f"it cannot be reached: {type(error).__name__}") from None

    def _count(self, digest: str, other: str, compared: Compared) -> None:
        pair = (digest, other)
        if self._is_own:
            return
        if pair not in self._tallies:
            log.info("comparing answers with those of %s", self._address, extra={"fields": {"digest": other}})
            if len(self._tallies) >= MAX_PAIRS:
                oldest = next(iter(self._tallies))
                del self._tallies[oldest]
                remove_interval(ROLLOUT_AGREEMENT, *oldest)
        self._failing = ""
        tally = self._tallies.setdefault(pair, _Tally())
        tally.images += 1
        tally.agreed += compared.agrees
        tally.difference += compared.difference
        # Prometheus cannot compare two labels, and a gate asks for more where only the card has changed.
        weights = "same" if digest == other else "other"
        ROLLOUT_COMPARISONS.labels(*pair, weights, "agreed" if compared.agrees else "disagreed").inc()
        ROLLOUT_DIFFERENCE.labels(*pair).observe(compared.difference)
        show_interval(ROLLOUT_AGREEMENT, tally.agreement, *pair)
        self._record()

    def _fail(self, failure: _Failed) -> None:
        """Count an image that could not be compared; log the first one of several for the same reason."""
        ROLLOUT_FAILURES.labels(failure.reason).inc()
        self._failures[failure.reason] = self._failures.get(failure.reason, 0) + 1
        if failure.reason == "itself":
            self._end()
        elif failure.reason != self._failing:
            log.warning("an answer could not be compared with that of %s: %s", self._address, failure)
        self._failing = failure.reason
        self._record()

    def _end(self) -> None:
        """End all comparisons: the other release is this one, so they would show nothing."""
        if not self._is_own:
            log.warning("compare_with (%s) leads to this release itself: comparisons end", self._address)
        self._is_own = True
        for pair in self._tallies:
            remove_interval(ROLLOUT_AGREEMENT, *pair)
        self._tallies.clear()

    def _record(self) -> None:
        """Show the results in /info."""
        self._predictor.record_rollout(
            {
                "compared_with": self._address,
                "comparisons": [
                    {
                        "digest": digest,
                        "other": other,
                        "images": tally.images,
                        "agreed": tally.agreed,
                        **tally.agreement._asdict(),
                        "difference": tally.difference / tally.images,
                    }
                    for (digest, other), tally in self._tallies.items()
                ],
                "failures": dict(self._failures),
            }
        )


def api_key(file: Path) -> str:
    """Return the first API key in `file`, which has the form of the setting api_keys.

    Raises:
        PthserveError: It cannot be read, or has no key that a header can carry. The message does not name it.
    """
    try:
        lines = map(bytes.strip, regular_files.read(file, MAX_KEYS).splitlines())
    except OSError as error:
        raise PthserveError(f"{file}: the API key cannot be read: {error.strerror}") from None
    key = next((line for line in lines if line and not line.startswith(b"#")), b"")
    if not re.fullmatch(rb"[\x21-\x7e]+", key):
        raise PthserveError(f"{file}: its first key is not one of printable ASCII characters without spaces")
    return key.decode()


def _client(seconds: float) -> "httpx.AsyncClient":
    """Return a client that uses each connection once, so that requests spread over all pods of a Service.

    Args:
        seconds: Maximum time without a byte.
    """
    import httpx  # imported only if there is something to compare with

    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=CONCURRENT, max_keepalive_connections=0), timeout=seconds
    )


def _size(answer: Any) -> int:
    """Return the bytes of the arrays in an answer; of a view, those of the batch that it keeps in memory."""
    if answer is None:
        return 0
    values = [getattr(answer, field.name) for field in fields(answer) if field.name != "labels"]
    return sum((one.base if isinstance(one.base, np.ndarray) else one).nbytes for one in _arrays(values))


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _arrays(part)


def _compared(one: _Waiting, text: bytes) -> tuple[str, Compared]:
    """Return the digest of the other model, and how both answers compare; called in a thread."""
    answered = orjson.loads(text)
    other = answered["model"]["digest"]
    if not (isinstance(other, str) and _DIGEST.fullmatch(other)):
        raise _Failed("answer", "its answer does not name the digest of its model")
    if one.answer is None:
        return other, Compared(False, 1.0)
    try:
        return other, one.task.compare(one.answer, answered)
    except (KeyError, TypeError, ValueError):  # an answer of another task cannot agree
        return other, Compared(False, 1.0)
