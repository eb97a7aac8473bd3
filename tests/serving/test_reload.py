"""A model is loaded beside the old one, and replaces it or does not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pthserve.certainty import Inferred, Origin
from pthserve.engines.base import Images, Logits
from pthserve.errors import EngineError, GoldenError, ModelError, WeightsError
from pthserve.files.fingerprint import Fingerprint, fingerprint
from pthserve.files.golden import Golden
from pthserve.files.stated_task import NamedOutput
from pthserve.loading.model import Model
from pthserve.metrics import REGISTRY
from pthserve.serving.predictor import Predictor
from pthserve.serving.reload import Reload
from pthserve.settings import Settings
from pthserve.tasks.base import Task
from pthserve.tasks.classification import CLASSIFICATION
from pthserve.tasks.embedding import EmbeddingTask
from pthserve.tasks.multilabel import MultiLabelTask
from pthserve.tasks.regression import RegressionTask

from ..shared import until_async
from .squares import BLUE, Gate, Squares, png, squares

OLD, NEW = "aa" * 32, "bb" * 32


class Source:
    """What a service loads: `model` makes it, or raises."""

    def __init__(self, model: Callable[[], Model]) -> None:
        self.model = model
        self.loads = 0

    def __call__(self) -> Model:
        self.loads += 1
        return self.model()


@asynccontextmanager
async def served(
    engine: Squares | None = None, *, task: Task = CLASSIFICATION, **settings: Any
) -> AsyncIterator[tuple[Predictor, Reload, Source]]:
    """A service of a model with the digest OLD."""
    chosen = Settings(**settings)
    predictor = Predictor(chosen)
    first = [squares(engine, digest=OLD, task=task)]
    source = Source(first.pop)
    reload = Reload(predictor, chosen, source)
    try:
        await reload.first()
        source.loads = 0
        yield predictor, reload, source
    finally:
        reload.close()
        predictor.close()


def digest(predictor: Predictor) -> str:
    return predictor.model().digest


def loads(result: str) -> float:
    return REGISTRY.get_sample_value("pthserve_model_loads_total", {"result": result}) or 0.0


async def test_what_is_uncertain_about_a_model_is_a_warning_with_the_line_that_states_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = (
        Inferred("architecture", "resnet18", Origin.FILE, "architecture: resnet18"),
        Inferred("activation", "ReLU", Origin.ASSUMED, "head: {activation: relu}"),
    )
    async with served() as (_, reload, source):
        source.model = lambda: replace(squares(digest=NEW), inferred=told)
        await reload.again()
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning == f"{told[1]}"
    assert "`head: {activation: relu}`" in warning


# --- what takes the old model's place ---------------------------------------------------------------------


async def test_a_new_model_takes_the_old_one_s_place_warm_and_what_it_came_to_is_told() -> None:
    engine = Squares()
    async with served() as (predictor, reload, source):
        assert not predictor.last_reload
        before = loads("ok")
        source.model = lambda: squares(engine, digest=NEW, labels=("rot", "grün", "blau"))
        await reload.again()
        assert digest(predictor) == NEW
        assert engine.batches
        assert loads("ok") - before == 1
        told = predictor.last_reload
        assert told is not None
        assert (told["result"], told["digest"]) == ("ok", NEW)
        assert (await predictor.predict(png())).model.labels[0] == "rot"


async def test_requests_in_flight_are_answered_by_the_old_model_which_is_freed_with_the_last() -> None:
    engine, gate = Squares(), Gate()
    async with served(engine) as (predictor, reload, source):
        source.model = lambda: squares(digest=NEW)
        engine.hook = gate
        held = asyncio.create_task(predictor.predict(png()))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        # The warm-up goes through the queue, which the gate holds: the swap comes right behind.
        swap = asyncio.create_task(reload.again())
        await until_async(lambda: predictor.batcher.depth > 0)
        assert not engine.closed
        gate.opened.set()
        await swap
        prediction = await held
        assert prediction.model.digest == OLD
        assert digest(predictor) == NEW
        assert not engine.closed
        del prediction, held
        await until_async(lambda: engine.closed)


class Sparing(Squares):
    """An engine that is made without a part.

    completed: of each call of `complete`, whether `before` was closed.
    """

    def __init__(self, before: Squares, error: EngineError | None = None) -> None:
        super().__init__(lanes=2)
        self.before = before
        self.error = error
        self.completed: list[bool] = []

    def complete(self) -> None:
        self.completed.append(self.before.closed)
        if self.error is not None:
            raise self.error


async def test_a_sparing_engine_has_no_large_batches_and_is_completed_once_the_old_one_is_freed() -> None:
    old = Squares()
    async with served(old) as (predictor, reload, source):
        assert max(old.batches) == 8
        new = Sparing(old)
        source.model = [squares(new, digest=NEW)].pop
        held = await predictor.predict(png(BLUE))
        await reload.again()
        assert digest(predictor) == NEW
        assert max(new.batches) == 2
        assert held.model.digest == OLD
        assert new.completed == []
        del held
        await until_async(lambda: new.completed == [True])


async def test_the_next_reload_does_not_wait_for_a_model_that_somebody_keeps() -> None:
    old = Squares()
    async with served(old) as (predictor, reload, source):
        kept = predictor.model()
        first = Sparing(old)
        source.model = [squares(first, digest=NEW)].pop
        await reload.again()
        source.model = [squares(digest=OLD)].pop
        await reload.again()
        assert first.completed == [False]
        assert kept.digest == OLD


async def test_an_engine_that_cannot_be_completed_is_served_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = Squares()
    async with served(old) as (predictor, reload, source):
        source.model = [squares(Sparing(old, EngineError("no memory")), digest=NEW)].pop
        await reload.again()
        assert digest(predictor) == NEW
        await until_async(lambda: "no memory" in caplog.text)


async def test_a_load_that_nobody_waits_for_any_more_goes_on() -> None:
    async with served() as (predictor, reload, source):
        source.model = lambda: squares(digest=NEW)
        impatient = asyncio.create_task(reload.again())
        await asyncio.sleep(0)
        impatient.cancel()
        await until_async(lambda: digest(predictor) == NEW)


async def test_those_who_ask_while_a_load_runs_share_one_that_begins_after_it() -> None:
    gate = Gate()
    async with served() as (_, reload, source):

        def held() -> Model:
            gate(None)
            return squares(digest=NEW)

        source.model = held
        first = asyncio.create_task(reload.again())
        assert await asyncio.to_thread(gate.entered.wait, 10)
        others = [asyncio.create_task(reload.again()) for _ in range(5)]
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(first, *others)
        assert source.loads == 2


# --- what does not ----------------------------------------------------------------------------------------


class Nowhere(Squares):
    def __call__(self, batch: Images) -> Logits:
        return super().__call__(batch) * np.float32(np.nan)


def fail(error: Exception) -> Any:
    raise error


def golden(folder: Path, **fields: Any) -> Model:
    """A model that should find red in a blue image."""
    image = folder / "golden.png"
    image.write_bytes(png(BLUE))
    return squares(golden=(Golden(image, 0),), **fields)


BROKEN: dict[str, tuple[Callable[[Path], Model], type[ModelError], str, str]] = {
    "no file": (
        lambda _: fail(WeightsError("model.pth: no such file")),
        WeightsError,
        "failed",
        "model.pth: no such file",
    ),
    "golden images": (golden, GoldenError, "golden", "class 2 .* and not 0"),
    "an engine that raises": (
        lambda _: squares(Squares(hook=lambda _: fail(ValueError("bad kernel")))),
        EngineError,
        "failed",
        "bad kernel",
    ),
    "no memory": (lambda _: fail(MemoryError()), EngineError, "failed", "MemoryError"),
    "no numbers": (lambda _: squares(Nowhere()), EngineError, "failed", "NaN or infinity"),
    "other classes": (
        lambda _: squares(Two(), labels=("red", "green")),
        ModelError,
        "failed",
        "2 classes, but the current one has 3",
    ),
    "another task": (
        lambda _: squares(task=MultiLabelTask()),
        ModelError,
        "failed",
        "the task of the new model is multilabel, but that of the current one is classification; restart",
    ),
    "another name": (
        lambda _: squares(name="circles"),
        ModelError,
        "failed",
        "'circles', but the current one 'squares'",
    ),
}


class Two(Squares):
    def __call__(self, batch: Images) -> Logits:
        return super().__call__(batch)[:, :2]


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
async def test_a_model_that_fails_leaves_the_old_one_and_its_reason(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, kind, result, words = BROKEN[case]

    with caplog.at_level(logging.ERROR):
        async with served() as (predictor, reload, source):
            source.model = lambda: make(tmp_path)
            before = loads(result)
            with pytest.raises(kind, match=words):
                await reload.again()
            assert digest(predictor) == OLD
            assert loads(result) - before == 1
            told = predictor.last_reload
            assert told is not None
            assert told["result"] == result
            assert str(told["error"]) in caplog.text
            assert predictor.unready is None
            assert (await predictor.predict(png())).answer.class_index == 0
            # And the next good one is taken.
            source.model = lambda: squares(digest=NEW)
            await reload.again()
            assert digest(predictor) == NEW
    assert "the model was not replaced" in caplog.text


@pytest.mark.slow
async def test_other_values_and_other_vectors_are_refused_like_other_classes() -> None:
    outputs = [tuple(NamedOutput(name, unit) for name in "abc") for unit in ("mm", "cm")]
    cases: list[tuple[Task, Task, str]] = [
        (RegressionTask(outputs[0]), RegressionTask(outputs[1]), "predicts a in cm, .* predicts a in mm"),
        (EmbeddingTask(3), EmbeddingTask(3, normalize=True), "returns normalised vectors of 3 numbers"),
    ]
    for old, new, words in cases:
        async with served(task=old) as (_, reload, source):
            source.model = partial(squares, task=new)
            with pytest.raises(ModelError, match=words):
                await reload.again()
            source.model = partial(squares, task=old)
            await reload.again()


async def test_a_model_that_is_not_taken_is_freed(tmp_path: Path) -> None:
    engine = Squares()
    async with served() as (_, reload, source):
        source.model = lambda: golden(tmp_path, engine=engine)
        with pytest.raises(GoldenError):
            await reload.again()
        await until_async(lambda: engine.closed)


async def test_golden_images_that_only_warn_let_the_model_in(tmp_path: Path) -> None:
    async with served(golden="warn") as (predictor, reload, source):
        source.model = lambda: golden(tmp_path, digest=NEW)
        await reload.again()
        assert (digest(predictor), predictor.golden) == (NEW, "disagreed")


# --- watching ---------------------------------------------------------------------------------------------


class File:
    """A file whose content is the digest of the model it is; `broken` cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loads: list[str] = []
        self.write(OLD)

    def write(self, content: str) -> None:
        fresh = self.path.with_name(".fresh")
        fresh.write_text(content)
        fresh.replace(self.path)

    def load(self) -> Model:
        content = self.path.read_text()
        self.loads.append(content)
        if content.startswith("broken"):
            raise WeightsError(f"{self.path}: is broken")
        return squares(digest=content)


@asynccontextmanager
async def watched(path: Path, interval: float = 0.02) -> AsyncIterator[tuple[Predictor, Reload, File]]:
    file = File(path)
    settings = Settings(model=str(path), reload_interval=interval)
    predictor = Predictor(settings)
    reload = Reload(predictor, settings, file.load)
    try:
        await reload.first()
        yield predictor, reload, file
    finally:
        reload.close()
        predictor.close()


def counted_looks(reload: Reload, after: Callable[[int], None] = lambda _: None) -> list[int]:
    """The numbers, from 1, of all looks at the files from now on; `after` is called after each."""
    look, numbers = reload._look, list[int]()

    def counted() -> Fingerprint:
        found = look()
        numbers.append(len(numbers) + 1)
        after(numbers[-1])
        return found

    reload._look = counted  # type: ignore[assignment]
    return numbers


@pytest.mark.slow
async def test_a_file_that_changed_is_loaded_once_and_a_broken_one_too(tmp_path: Path) -> None:
    async with watched(tmp_path / "model.pth") as (predictor, reload, file):
        looks = counted_looks(reload)
        file.write(NEW)
        await until_async(lambda: digest(predictor) == NEW)
        file.write("broken")
        await until_async(lambda: (predictor.last_reload or {}).get("result") == "failed")
        before = len(looks)
        await until_async(lambda: len(looks) > before + 5)
        assert file.loads == [OLD, NEW, "broken"]
        assert digest(predictor) == NEW
        file.write(OLD)
        await until_async(lambda: digest(predictor) == OLD)


async def test_a_file_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    """It changes after each of the first looks at it."""
    async with watched(tmp_path / "model.pth") as (predictor, reload, file):

        def write(number: int) -> None:
            if number < 10:
                file.path.write_text(f"broken{number * 'x'}")
            elif number == 10:
                file.write(NEW)

        counted_looks(reload, write)
        await until_async(lambda: digest(predictor) == NEW)
        assert file.loads == [OLD, NEW]


async def test_a_file_that_is_gone_is_told_and_the_model_served_on(tmp_path: Path) -> None:
    async with watched(tmp_path / "model.pth") as (predictor, _, file):
        file.path.unlink()
        await until_async(lambda: (predictor.last_reload or {}).get("result") == "failed")
        assert digest(predictor) == OLD


async def test_what_changed_while_it_was_loaded_is_not_taken_and_then_loaded_again(tmp_path: Path) -> None:
    gate = Gate()
    async with watched(tmp_path / "model.pth") as (predictor, reload, file):
        load = reload._load

        def held() -> Model:
            model = load()
            gate(None)
            return model

        reload._load = held
        file.write("cc" * 32)
        assert await asyncio.to_thread(gate.entered.wait, 10)
        file.write(NEW)
        gate.opened.set()
        await until_async(lambda: "changed while it was being loaded" in str(predictor.last_reload))
        assert digest(predictor) == OLD
        await until_async(lambda: digest(predictor) == NEW)


async def test_a_change_is_reported_once_where_nothing_reloads_by_itself_and_no_more_after_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pthserve.serving.reload.LOOK", 0.01)

    def warnings() -> int:
        return sum("have changed" in record.message for record in caplog.records)

    def metric() -> float | None:
        return REGISTRY.get_sample_value("pthserve_model_files_changed")

    async with watched(tmp_path / "model.pth", interval=0.0) as (predictor, reload, file):
        assert (predictor.files_changed, metric()) == (False, 0)
        file.path.write_text(NEW)  # in place
        await until_async(lambda: predictor.files_changed)
        file.path.unlink()
        file.write(NEW)
        assert (warnings(), metric(), file.loads, digest(predictor)) == (1, 1, [OLD], OLD)
        await reload.again()
        assert (predictor.files_changed, metric(), digest(predictor)) == (False, 0, NEW)
        file.write(OLD)
        await until_async(lambda: predictor.files_changed)
        assert warnings() == 2


async def test_files_that_were_refused_still_count_as_changed(tmp_path: Path) -> None:
    async with watched(tmp_path / "model.pth") as (predictor, _, file):
        file.write("broken")
        await until_async(lambda: (predictor.last_reload or {}).get("result") == "failed")
        await until_async(lambda: predictor.files_changed)
        assert digest(predictor) == OLD


# --- what a change is -------------------------------------------------------------------------------------


def mounted(folder: Path, number: int) -> None:
    """Put version `number` into `folder` as the kubelet does: a folder of its own, and a swap of `..data`."""
    version = folder / f"..{number}"
    (version / "golden").mkdir(parents=True)
    (version / "model.pth").write_text(f"weights {number}")
    (version / "golden" / "cat.jpg").write_text("a cat")
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    link.replace(folder / "..data")
    for name in ("model.pth", "golden"):
        if not (folder / name).exists():
            (folder / name).symlink_to(f"..data/{name}")


@pytest.mark.parametrize("watched", ["", "model.pth"])
def test_a_swap_of_what_kubernetes_mounts_is_a_change(tmp_path: Path, watched: str) -> None:
    mounted(tmp_path, 1)
    before = fingerprint(tmp_path / watched)
    assert len(before) == (1 if watched else 2)
    assert fingerprint(tmp_path / watched) == before
    mounted(tmp_path, 2)
    assert fingerprint(tmp_path / watched) != before


@pytest.mark.parametrize(
    ("watched", "changed"),
    [
        ("model.pth", "model.pth"),
        ("model.pth", "model.yaml"),
        ("", "model.pth"),
        ("", "labels.txt"),
        ("", "golden/new.png"),
    ],
)
def test_a_file_of_the_model_that_changes_or_comes_is_a_change(
    tmp_path: Path, watched: str, changed: str
) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "model.pth").write_text("weights")
    before = fingerprint(tmp_path / watched)
    (tmp_path / changed).write_text("new content")
    assert fingerprint(tmp_path / watched) != before


@pytest.mark.parametrize(
    ("watched", "changed"), [("model.pth", "other.pth"), ("", ".model.pth.part"), ("", "..2024/x")]
)
def test_what_is_no_file_of_the_model_is_no_change(tmp_path: Path, watched: str, changed: str) -> None:
    (tmp_path / "model.pth").write_text("weights")
    before = fingerprint(tmp_path / watched)
    (tmp_path / changed).parent.mkdir(exist_ok=True)
    (tmp_path / changed).write_text("new content")
    assert fingerprint(tmp_path / watched) == before


def test_what_is_not_there_has_a_fingerprint_and_links_in_a_circle_an_end(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "nothing") == frozenset()
    (tmp_path / "model.pth").write_text("weights")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to("nothing")
    assert len(fingerprint(tmp_path)) < 50
