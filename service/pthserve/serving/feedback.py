"""Feedback: the latest answers by the id of their request, to count which of them clients report as correct.

Only the id, the digest of the model and the class are kept, in memory; no image.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pthserve.errors import MalformedRequest, NotFound
from pthserve.intervals import wilson
from pthserve.metrics import FEEDBACK, FEEDBACK_ACCURACY, show_interval
from pthserve.serving.prediction import Input, Prediction
from pthserve.serving.predictor import Predictor
from pthserve.tasks.classification import Classification
from pthserve.text import quoted
from pthserve.tracing import REQUEST_ID


@dataclass(slots=True)
class _Answered:
    """The answers to a request. counted: bit n is set once the class of image n has been reported."""

    digest: str
    labels: tuple[str, ...]
    classes: tuple[int, ...]
    counted: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """The result of a report. counted: False if the class of this image was reported before."""

    id: str
    image: int
    label: str
    answer: str
    correct: bool
    counted: bool
    digest: str


class Feedback:
    """Remembers the answers of `predictor` for the latest `limit` images.

    Raises:
        ValueError: `limit` is less than 1.
    """

    def __init__(self, predictor: Predictor, limit: int) -> None:
        if limit < 1:
            raise ValueError("at least one answer has to be remembered")
        self._limit = limit
        self._images = 0
        self._answered: dict[str, _Answered] = {}
        self._results: Counter[tuple[str, bool]] = Counter()
        predictor.observers.add(self._remember)

    def report(self, request_id: str, label: str | int, image: int = 0) -> Counted:
        """Count whether the answer for an image was correct; only the first report of an image counts.

        Args:
            request_id: The id in the header `X-Request-Id` of the answer.
            label: The true class: its label or its index.
            image: The number of the image in the request, counted from 0.

        Raises:
            NotFound: No answer with this id is remembered.
            MalformedRequest: The request has no such image, or the model no such class.
        """
        answered = self._answered.get(request_id)
        if answered is None:
            raise NotFound(
                f"no answer with the id {quoted(request_id, 140)} is remembered: the id is wrong, or its "
                f"answer is older than the latest {self._limit} images, or another process gave it"
            )
        if not 0 <= image < len(answered.classes):
            raise MalformedRequest(
                f"`image`: the request has {len(answered.classes)} images, which are counted from 0"
            )
        true, given = _index(label, answered.labels), answered.classes[image]
        correct, first = true == given, not answered.counted >> image & 1
        if first:
            answered.counted |= 1 << image
            self._count(answered.digest, correct=correct)
        labels = answered.labels
        return Counted(request_id, image, labels[true], labels[given], correct, first, answered.digest)

    def _count(self, digest: str, *, correct: bool) -> None:
        FEEDBACK.labels(digest, "correct" if correct else "incorrect").inc()
        self._results[digest, correct] += 1
        right = self._results[digest, True]
        accuracy = wilson(right, right + self._results[digest, False])
        assert accuracy is not None
        show_interval(FEEDBACK_ACCURACY, accuracy, digest)

    def _remember(self, _: Sequence[Input], predictions: Sequence[Prediction] | None) -> None:
        request_id = REQUEST_ID.get()
        if predictions is None or not request_id:
            return
        answers = [one.answer for one in predictions if isinstance(one.answer, Classification)]
        if not answers:  # another task, whose answer is not one class
            return
        self._forget(request_id)
        classes = tuple(answer.class_index for answer in answers)
        self._answered[request_id] = _Answered(predictions[0].model.digest, answers[0].labels, classes)
        self._images += len(classes)
        while self._images > self._limit:
            self._forget(next(iter(self._answered)))

    def _forget(self, request_id: str) -> None:
        if (answered := self._answered.pop(request_id, None)) is not None:
            self._images -= len(answered.classes)


def _index(label: str | int, labels: tuple[str, ...]) -> int:
    """Return the index of a class; raises MalformedRequest."""
    if isinstance(label, int):
        if 0 <= label < len(labels):
            return label
        raise MalformedRequest(f"`label`: there is no class {label} among {len(labels)}")
    if label not in labels:
        raise MalformedRequest(
            f"`label`: the model that answered has no class {quoted(label, 100)}; /info lists the labels"
        )
    return labels.index(label)
