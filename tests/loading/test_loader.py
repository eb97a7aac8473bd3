"""The loader: packed once in a child process, found from then on; and as before where that cannot be."""

import logging
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from torch import nn

from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.errors import (
    AmbiguousArchitecture,
    ArchitectureError,
    CardError,
    GoldenError,
    ModelError,
    WeightsError,
)
from pthserve.loading import packed
from pthserve.loading.cache import PACK, PACKS, Cache
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import load
from pthserve.loading.loader import Loader
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.settings import Settings

from ..running import PATIENCE
from ..zoo import CODE, SPEC, tiny_folder

pytestmark = pytest.mark.slow

SETTINGS = Settings(threads=1, tune_budget=0.0, allow_code=CODE)
BUILDING = "converting the model"
"""The stage of a build that a start does without where the pack is there."""
KILLS = int(os.environ.get("PTHSERVE_TEST_KILLS", "4"))

START = """
import sys
from pthserve.loading.loader import Loader
from pthserve.settings import Settings

print("begun", flush=True)
Loader(sys.argv[1], Settings(threads=1, tune_budget=0.0, allow_code="tests.zoo"), 2**30)()
print("done", "torch" in sys.modules, flush=True)
"""
"""What a start does, in a process of its own."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of pthserve, with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "pthserve"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "zoo").mkdir()
    return tiny_folder(tmp_path / "zoo")


def start(source: Path, size: int | None = 2**30, **options: Any) -> tuple[Model, list[str]]:
    """A model as a start loads it, and the stages that this went through."""
    stages: list[str] = []
    loader = Loader(str(source), SETTINGS.model_copy(update=options), size)
    model = loader(lambda stage, done, total: stages.append(stage))
    assert not loader.stage
    return model, stages


def answers(model: Model) -> Any:
    images = np.random.default_rng(3).integers(0, 256, (4, *SPEC.image_shape), np.uint8)
    return model.forward(images)


def entries(cache: Path) -> list[Path]:
    return [path for path in (cache / PACKS).iterdir() if path.is_dir()]


def shown(model: Model) -> dict[str, Any]:
    """All that a model says of itself, but for how it is run."""
    names = ("labels", "spec", "digest", "name", "version", "architecture", "parameters", "golden")
    return {name: getattr(model, name) for name in (*names, "inferred", "task", "source", "options")}


def test_a_second_start_finds_what_the_first_has_packed(cache: Path, source: Path) -> None:
    whole = load(str(source), SETTINGS)
    first, stages = start(source)
    assert BUILDING in stages
    second, stages = start(source)
    assert BUILDING not in stages
    for model in (first, second):
        assert shown(model) == shown(whole)
        np.testing.assert_array_equal(answers(model), answers(first))
    assert len(entries(cache)) == 1

    # A card that says something else is another model; and so is a name, which a pack need not be built for.
    named, stages = start(source, name="other")
    assert (named.name, BUILDING in stages) == ("other", False)
    card = yaml.safe_load((source / "model.yaml").read_text())
    (source / "model.yaml").write_text(yaml.safe_dump({**card, "labels": ["a", "b", "c", "d", "e"]}))
    changed, stages = start(source)
    assert BUILDING in stages
    assert changed.labels == ("a", "b", "c", "d", "e")

    # A damaged entry is built again, whichever byte it is.
    file = next(entry / PACK / "model.bin" for entry in entries(cache))
    for entry in entries(cache):
        file = entry / PACK / "model.bin"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    again, stages = start(source)
    assert BUILDING in stages
    np.testing.assert_array_equal(answers(again), answers(changed))
    assert BUILDING not in start(source)[1]


def test_two_starts_at_once_build_once(cache: Path, source: Path) -> None:
    stages: list[list[str]] = []
    threads = [threading.Thread(target=lambda: stages.append(start(source)[1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(BUILDING in each for each in stages) == [False, True]
    assert len(entries(cache)) == 1


def test_a_plan_is_measured_by_the_first_start_and_used_by_the_second(cache: Path, source: Path) -> None:
    first, _ = start(source, tune_budget=0.5)
    second, stages = start(source, tune_budget=0.5)
    assert first.plan.digest == first.digest
    assert second.plan == first.plan
    assert BUILDING not in stages


def test_a_reload_runs_the_new_model_as_the_one_before_it(cache: Path, source: Path) -> None:
    loader = Loader(str(source), SETTINGS.model_copy(update={"tune_budget": 0.5, "precision": "fp32"}), 2**30)
    first = loader()
    tiny_folder(source, seed=1)
    second = loader()
    assert first.digest != second.digest
    assert second.plan.precision == first.plan.precision == "fp32"
    assert second.plan.max_batch == first.plan.max_batch
    assert not second.plan.digest  # nothing was measured
    assert second.options.tune_budget == 0.5


@pytest.mark.parametrize("packed_before", [False, True])
def test_a_reload_makes_a_sparing_engine_and_a_start_a_whole_one(
    cache: Path, source: Path, tmp_path: Path, packed_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def noted(self: OpenVINOEngine, *given: Any, sparing: bool = False, **named: Any) -> None:
        made.append(sparing)
        init(self, *given, sparing=sparing, **named)

    init = OpenVINOEngine.__init__
    if packed_before:
        pack(str(source), tmp_path / "packed", SETTINGS)
        source = tmp_path / "packed"
    monkeypatch.setattr(OpenVINOEngine, "__init__", noted)
    loader = Loader(str(source), SETTINGS, 2**30)
    loader()
    assert set(made) == {False}
    made.clear()
    loader()
    assert set(made) == {True}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module, with a file that it reads; its weights are beside."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_net.py").write_text(
        textwrap.dedent(
            """
            from pathlib import Path
            import torch
            from torch import nn
            from own_part import scale

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.factor = scale() * float((Path(__file__).parent / "factor.txt").read_text())
                    self.head = nn.Linear(3, 5)

                def forward(self, images):
                    return self.head(images.mean((2, 3))) * self.factor
            """
        )
    )
    (folder / "own_part.py").write_text("def scale():\n    return 2\n")
    (folder / "factor.txt").write_text("3")
    torch.manual_seed(0)
    torch.save({f"head.{k}": v for k, v in nn.Linear(3, 5).state_dict().items()}, folder / "net.pth")
    (folder / "model.yaml").write_text(
        yaml.safe_dump({"architecture": "own_net:Net", "preprocessing": {"resize": 32, "crop": 32}})
    )
    past = time.time() - 100
    for file in folder.iterdir():
        os.utime(file, (past, past))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("own_net", "own_part"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", ["own_part.py", "factor.txt"])
def test_code_of_the_user_s_counts_with_all_that_it_reads(cache: Path, code: Path, file: str) -> None:
    first, _ = start(code / "net.pth", allow_code="own_net")
    assert BUILDING not in start(code / "net.pth", allow_code="own_net")[1]
    text = (code / file).read_text()
    (code / file).write_text(text.replace("2", "4").replace("3", "6"))
    changed, stages = start(code / "net.pth", allow_code="own_net")
    assert BUILDING in stages
    np.testing.assert_allclose(answers_of(changed), 2 * answers_of(first), rtol=0.05)


def answers_of(model: Model) -> Any:
    images = np.random.default_rng(3).integers(0, 256, (4, *model.spec.image_shape), np.uint8)
    return model.forward(images)


def _garbage(folder: Path) -> Path:
    (folder / "model.pth").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    return folder / "model.pth"


def _unknown(folder: Path) -> Path:
    torch.save({"a.weight": torch.ones(3, 4)}, folder / "model.pth")
    return folder / "model.pth"


def _ambiguous(folder: Path) -> Path:
    torch.save(timm.create_model("test_efficientnet_ln", num_classes=5).state_dict(), folder / "model.pth")
    return folder / "model.pth"


def _code(folder: Path) -> Path:
    torch.save({"a.weight": torch.ones(3, 4)}, folder / "model.pth")
    (folder / "model.yaml").write_text("architecture: own_net:Net\n")
    return folder / "model.pth"


def _card(folder: Path) -> Path:
    torch.save({"a.weight": torch.ones(3, 4)}, folder / "model.pth")
    (folder / "model.yaml").write_text("labels: nowhere.txt\n")
    return folder / "model.pth"


WRONG = {
    "a file of Keras": (_garbage, WeightsError),
    "no architecture that is known": (_unknown, ArchitectureError),
    "several architectures": (_ambiguous, AmbiguousArchitecture),
    "code that is not allowed": (_code, ArchitectureError),
    "a card": (_card, CardError),
    "no file": (lambda folder: folder / "none.pth", WeightsError),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_reported_as_without_a_cache(cache: Path, tmp_path: Path, case: str) -> None:
    make, kind = WRONG[case]
    (tmp_path / "wrong").mkdir()
    source = make(tmp_path / "wrong")
    with pytest.raises(ModelError) as plain:
        load(str(source), SETTINGS)
    with pytest.raises(ModelError) as through_the_cache:
        start(source)
    assert type(through_the_cache.value) is type(plain.value) is kind
    assert str(through_the_cache.value) == str(plain.value)
    if isinstance(plain.value, AmbiguousArchitecture):
        assert isinstance(through_the_cache.value, AmbiguousArchitecture)
        assert through_the_cache.value.choices == plain.value.choices


def _disagreeing(folder: Path) -> Path:
    source = tiny_folder(folder)
    card = yaml.safe_load((source / "model.yaml").read_text())
    card["golden"][0]["class_index"] = (card["golden"][0]["class_index"] + 1) % len(card["labels"])
    (source / "model.yaml").write_text(yaml.safe_dump(card))
    return source


REFUSED = {
    "several architectures": (_ambiguous, AmbiguousArchitecture, 3),
    "golden images that disagree": (_disagreeing, GoldenError, 4),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_service_with_a_cache_ends_with_the_text_and_code_that_it_has_without_one(
    cache: Path, tmp_path: Path, case: str
) -> None:
    make, kind, code = REFUSED[case]
    (tmp_path / "refused").mkdir()
    source = make(tmp_path / "refused")
    with pytest.raises(kind) as plain:
        apply_golden_policy(load(str(source), SETTINGS), SETTINGS)
    command = [sys.executable, "-m", "pthserve", "serve", str(source), "--port", "0", "--threads", "1"]
    command += ["--tune-budget", "0", "--allow-code", CODE]
    for flags in ([], [], ["--no-cache"]):  # at the second, what can be packed is found in the cache
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == code, done.stderr
        assert done.stderr.rstrip().endswith(str(plain.value)), done.stderr
    assert bool(entries(cache)) == (kind is GoldenError)


def test_a_folder_that_cannot_be_used_keeps_no_model_from_being_served(
    cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.touch()
    with caplog.at_level(logging.WARNING, "pthserve"):
        model, stages = start(source)
    assert BUILDING in stages
    assert re.search(r"is not kept for later starts: .*packs: (Not a directory|File exists)", caplog.text)
    assert model.forward.name == "openvino"


def test_without_a_cache_nothing_is_kept(cache: Path, source: Path) -> None:
    for _ in range(2):
        assert BUILDING in start(source, size=None)[1]
    assert not cache.exists()


def test_pytorch_runs_what_it_is_asked_to_without_a_pack(cache: Path, source: Path) -> None:
    model, stages = start(source, engine="torch", precision="fp32")
    assert (model.forward.name, BUILDING in stages, cache.exists()) == ("torch", False, False)


def test_what_openvino_cannot_express_runs_in_pytorch_and_is_not_tried_again(cache: Path, code: Path) -> None:
    net = code / "own_net.py"
    net.write_text(
        net.read_text().replace(
            "        return self.head",
            "        if images.sum() > 0:\n            images = images * 1\n        return self.head",
        )
    )
    os.utime(net, (time.time() - 100,) * 2)
    first, stages = start(code / "net.pth", allow_code="own_net")
    assert (first.forward.name, BUILDING in stages) == ("torch", True)
    second, stages = start(code / "net.pth", allow_code="own_net")
    assert (second.forward.name, BUILDING in stages) == ("torch", False)


def test_whenever_a_start_is_killed_the_next_is_right(cache: Path, source: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    expected = answers(load(str(source), SETTINGS.model_copy(update={"engine": "openvino"})))
    command = [sys.executable, "-c", START, str(source)]
    began = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["begun", "done", "False"]
    seconds = time.monotonic() - began
    whole = 0
    for _ in range(KILLS):
        for entry in entries(cache):
            for file in sorted(entry.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            entry.rmdir()
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, seconds))  # the moment at which it is killed
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for entry in entries(cache):
            if not entry.name.startswith("."):
                with Cache(cache, 2**30).locked(entry.name, shared=True):
                    if (found := Cache(cache, 2**30).find(entry.name)) is not None:
                        assert packed.read(found.pack).name == "zoo"
                        whole += 1
    print(f"{whole} of {KILLS} left a whole entry; a start takes {seconds:.1f} s")
    subprocess.run(command, check=True, capture_output=True)
    (entry,) = entries(cache)
    found = Cache(cache, 2**30).find(entry.name)
    assert found is not None
    np.testing.assert_allclose(answers(load(str(found.pack), SETTINGS)), expected, atol=0.3)
