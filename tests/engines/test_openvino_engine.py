"""OpenVINO answers as PyTorch does, from bytes or from tensors, and needs no torch to do so."""

import copy
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pthserve.engines.compiled_graphs import COMPILED
from pthserve.engines.openvino_engine import OpenVINOEngine, precisions
from pthserve.engines.openvino_graph import convert, read, save
from pthserve.errors import EngineError
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec

SMALL = Spec(crop=(64, 64))
TINY = Spec(crop=(16, 20), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
GREY = Spec(crop=(12, 12), mean=(0.5,), std=(0.25,))
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02, "fp16": 0.02}

Build = Callable[[str, Spec], nn.Module]
Pixels = Callable[[Spec, int], NDArray[np.uint8]]


def probabilities(logits: NDArray[np.float32] | torch.Tensor) -> NDArray[np.float64]:
    return torch.as_tensor(logits).double().softmax(1).numpy()


def assert_agrees(engine: OpenVINOEngine, module: nn.Module, images: NDArray[np.uint8], spec: Spec) -> None:
    normalised = normalise(images, spec)
    with torch.no_grad():
        expected = probabilities(module(torch.from_numpy(normalised)))
    tolerance = TOLERANCE[engine.precision]
    for batch in (images, normalised):
        answer = engine(batch)
        assert answer.dtype == np.float32
        assert answer.shape == expected.shape
        assert np.abs(probabilities(answer) - expected).max() < tolerance


@pytest.fixture(scope="module")
def graph(build: Build) -> object:
    return convert(build("tiny", TINY), TINY)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [TINY, GREY], ids=["rgb", "grey"])
def test_bytes_are_normalised_as_by_torchvision_and_tensors_are_left_alone(
    spec: Spec, pixels: Pixels
) -> None:
    engine = OpenVINOEngine(convert(nn.Flatten(), spec), spec)
    images = pixels(spec, 3)
    expected = normalise(images, spec).reshape(3, -1)
    assert np.abs(engine(images) - expected).max() < 1e-6
    assert np.array_equal(engine(expected.reshape(3, *spec.tensor_shape)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_it_agrees_with_torch_at_any_batch_size(
    graph: object, build: Build, pixels: Pixels, count: int, threads: int
) -> None:
    engine = OpenVINOEngine(graph, TINY, threads=threads)
    assert_agrees(engine, build("tiny", TINY), pixels(TINY, count), TINY)


@pytest.mark.slow
def test_a_residual_network_agrees_with_torch(build: Build, pixels: Pixels) -> None:
    module = build("resnet18", SMALL)
    engine = OpenVINOEngine(convert(module, SMALL), SMALL, threads=2)
    assert_agrees(engine, module, pixels(SMALL, 3), SMALL)


@pytest.mark.slow
def test_a_sparing_engine_gives_the_same_answers_before_and_after_it_is_complete(
    graph: object, build: Build, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def counted(self: OpenVINOEngine, graph: Any, streams: int) -> Any:
        compiled.append(streams)
        return compile_(self, graph, streams)

    compile_ = OpenVINOEngine._compile
    monkeypatch.setattr(OpenVINOEngine, "_compile", counted)
    module, images = build("tiny", TINY), pixels(TINY, 3)
    engine = OpenVINOEngine(graph, TINY, threads=2, sparing=True)
    assert_agrees(engine, module, images[:1], TINY)
    assert_agrees(engine, module, images, TINY)
    assert compiled == [2, 2]
    engine.complete()
    assert compiled == [2, 2, 1, 1]
    assert_agrees(engine, module, images[:1], TINY)
    assert_agrees(engine, module, images, TINY)
    engine.complete()
    assert compiled == [2, 2, 1, 1]


@pytest.mark.slow
def test_as_many_threads_as_it_has_lanes_may_call_it_at_once(graph: object, pixels: Pixels) -> None:
    engine = OpenVINOEngine(graph, TINY, threads=2)
    images = pixels(TINY, 40)
    expected = np.concatenate([engine(image[None]) for image in images])
    tensors = normalise(images, TINY)
    together = threading.Barrier(engine.lanes, timeout=10)

    def each(kind: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        together.wait()
        return np.concatenate([engine(image[None]) for image in kind])

    assert engine.lanes == 2
    with ThreadPoolExecutor(engine.lanes) as threads:
        for kinds in ((images, images), (tensors, tensors), (images, tensors)):
            for answers in threads.map(each, kinds):
                assert np.abs(answers - expected).max() < 1e-5


@pytest.mark.slow
def test_on_other_threads_it_is_another_engine_of_the_same_model(graph: object, pixels: Pixels) -> None:
    engine = OpenVINOEngine(graph, TINY, threads=2)
    images = pixels(TINY, 4)
    expected = engine(images)
    other = engine.with_threads(1)
    assert (other.threads, other.lanes, engine.threads, engine.lanes) == (1, 1, 2, 2)
    assert np.abs(engine(images) - expected).max() < 1e-5
    engine.close()
    for answers in (other(images), other(normalise(images, TINY)), other.with_threads(4)(images)):
        assert np.abs(answers - expected).max() < 1e-5


@pytest.mark.skipif("bf16" not in precisions(), reason="this CPU lacks bf16")
def test_what_int8_leaves_at_bf16_stays_so_on_other_threads(graph: object, pixels: Pixels) -> None:
    images = pixels(TINY, 2)
    made = {
        rest: OpenVINOEngine(graph, TINY, precision="int8", threads=2, rest=rest) for rest in ("bf16", "fp32")
    }
    direct = {
        rest: OpenVINOEngine(graph, TINY, precision="int8", threads=1, rest=rest)(images) for rest in made
    }
    assert not np.array_equal(direct["bf16"], direct["fp32"])
    for rest, engine in made.items():
        np.testing.assert_array_equal(engine.with_threads(1)(images), direct[rest])


def test_an_answer_is_not_overwritten_by_the_next(graph: object, pixels: Pixels) -> None:
    engine = OpenVINOEngine(graph, TINY)
    first, second = pixels(TINY, 2)[:, None]
    answer = engine(first)
    kept = answer.copy()
    engine(second)
    assert np.array_equal(answer, kept)


def test_views_and_read_only_arrays_are_taken(graph: object, pixels: Pixels) -> None:
    engine = OpenVINOEngine(graph, TINY)
    images = pixels(TINY, 4)
    expected = engine(images[::-1].copy())
    assert np.array_equal(engine(images[::-1]), expected)
    images.flags.writeable = False
    assert np.array_equal(engine(images)[::-1], expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_cpu_computes_agrees_within_the_tolerance(
    build: Build, pixels: Pixels, graph: object, precision: str
) -> None:
    if precision not in precisions():
        pytest.skip(f"this CPU does not support {precision}")
    engine = OpenVINOEngine(graph, TINY, precision=precision)
    assert_agrees(engine, build("tiny", TINY), pixels(TINY, 8), TINY)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "flag"), [("bf16", "avx512_bf16"), ("fp16", "avx512_fp16")])
def test_a_precision_that_the_cpu_lacks_is_refused_by_the_name_of_what_it_needs(
    graph: object, precision: str, flag: str
) -> None:
    if precision in precisions():
        pytest.skip(f"this CPU computes {precision}")
    with pytest.raises(EngineError, match=flag):
        OpenVINOEngine(graph, TINY, precision=precision)


def test_an_unknown_precision_is_refused(graph: object) -> None:
    with pytest.raises(EngineError, match="fp32"):
        OpenVINOEngine(graph, TINY, precision="fp8")


def test_a_saved_graph_answers_the_same(graph: object, pixels: Pixels, tmp_path: Path) -> None:
    save(graph, tmp_path / "model.xml")
    images = pixels(TINY, 2)
    again = OpenVINOEngine(read(tmp_path / "model.xml"), TINY)(images)
    assert np.array_equal(again, OpenVINOEngine(graph, TINY)(images))


def test_compiled_graphs_are_kept_where_a_folder_is_given(
    graph: object, pixels: Pixels, tmp_path: Path
) -> None:
    images = pixels(TINY, 2)
    first = OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.blob")}
    assert kept
    assert np.array_equal(OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.blob")} == kept


@pytest.fixture(scope="module")
def graphs() -> list[object]:
    """Two of one architecture, with weights of many pages."""
    torch.manual_seed(0)
    return [convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 20, 64)), TINY) for _ in range(2)]


def changed_bytes(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first page zeroed": lambda data: bytes(4096) + data[4096:],
    "page in the middle zeroed": lambda data: (
        data[: len(data) // 2] + bytes(4096) + data[len(data) // 2 + 4096 :]
    ),
    "last page zeroed": lambda data: data[:-4096] + bytes(4096),
    "one byte changed": lambda data: changed_bytes(data, len(data) // 2),
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_compiled_graph_is_not_used_but_compiled_again(
    graphs: list[object], pixels: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    graph = graphs[0]
    images = pixels(TINY, 2)
    expected = OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images)
    blobs = {path: path.read_bytes() for path in tmp_path.rglob("*.blob")}
    assert blobs
    for path, data in blobs.items():
        path.write_bytes(DAMAGE[damage](data))
    with caplog.at_level(logging.WARNING, "pthserve"):
        np.testing.assert_array_equal(OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images), expected)
    for path, data in blobs.items():
        assert f"{path}: is damaged" in caplog.text
        assert path.read_bytes() != DAMAGE[damage](data)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "pthserve"):
        np.testing.assert_array_equal(OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images), expected)
    assert not caplog.text


def test_a_compiled_graph_whose_writer_was_killed_is_compiled_again(
    graph: object, pixels: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pixels(TINY, 2)
    expected = OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images)
    for file in tmp_path.rglob("*.sha256"):  # it is written last
        file.unlink()
    with caplog.at_level(logging.WARNING, "pthserve"):
        np.testing.assert_array_equal(OpenVINOEngine(graph, TINY, cache_dir=tmp_path)(images), expected)
    assert "was not written to its end" in caplog.text
    assert len(list(tmp_path.rglob("*.sha256"))) == len(list(tmp_path.rglob("*.blob"))) > 0


@pytest.mark.slow
def test_compiled_graphs_of_other_weights_and_threads_stay_apart(
    graphs: list[object], pixels: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pixels(TINY, 2)
    for _ in range(2):
        for graph in graphs:
            for threads in (1, 2):
                engine = OpenVINOEngine(graph, TINY, threads=threads, cache_dir=tmp_path)
                plain = OpenVINOEngine(graph, TINY, threads=threads)
                np.testing.assert_array_equal(engine(images), plain(images))
    assert not caplog.text


def test_engines_that_are_compiled_at_once_share_one_folder(
    graph: object, pixels: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pixels(TINY, 2)
    expected = OpenVINOEngine(graph, TINY)(images)
    with caplog.at_level(logging.WARNING, "pthserve"), ThreadPoolExecutor(4) as threads:
        made = [threads.submit(OpenVINOEngine, graph, TINY, cache_dir=tmp_path / "cache") for _ in range(4)]
        for engine in made:
            np.testing.assert_array_equal(engine.result()(images), expected)
    assert not caplog.text


@pytest.mark.parametrize("spoilt", ["mode", "link"])
def test_compiled_graphs_are_not_taken_from_where_others_may_write(
    graph: object, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoilt: str
) -> None:
    OpenVINOEngine(graph, TINY, cache_dir=tmp_path)
    kept = tmp_path / COMPILED
    assert kept.stat().st_mode & 0o777 == 0o700
    for file in kept.rglob("*.blob"):
        file.unlink()
    if spoilt == "mode":
        kept.chmod(0o777)
    else:
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to("elsewhere")
    with caplog.at_level(logging.WARNING, "pthserve"):
        OpenVINOEngine(graph, TINY, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.blob"))
    assert "compiled models are not cached: users other" in caplog.text


def test_a_cache_folder_that_cannot_be_made_is_done_without(
    graph: object, pixels: Pixels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    images = pixels(TINY, 2)
    with caplog.at_level(logging.WARNING, "pthserve"):
        answers = OpenVINOEngine(graph, TINY, cache_dir=tmp_path / "file")(images)
    np.testing.assert_array_equal(answers, OpenVINOEngine(graph, TINY)(images))
    assert "compiled models are not cached: Not a directory" in caplog.text


def test_a_batch_of_the_wrong_shape_is_said_in_words(graph: object) -> None:
    with pytest.raises(EngineError, match=r"^OpenVINO cannot run the model: Can't set the input") as caught:
        OpenVINOEngine(graph, TINY)(np.zeros((1, 5, 5, 3), np.uint8))
    assert ".cpp" not in str(caught.value)


@pytest.mark.slow
def test_the_module_may_be_released_after_conversion(pixels: Pixels) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 20, 5))
    images = pixels(TINY, 2)
    with torch.no_grad():
        expected = probabilities(module(torch.from_numpy(normalise(images, TINY))))
    graph = convert(module, TINY)
    seen = weakref.ref(module)
    del module
    gc.collect()
    assert seen() is None
    assert np.abs(probabilities(OpenVINOEngine(graph, TINY)(images)) - expected).max() < 1e-5


@pytest.mark.slow
def test_a_saved_graph_runs_without_torch_without_tools_and_without_a_word(
    graph: object, tmp_path: Path
) -> None:
    save(graph, tmp_path / "model.xml")
    script = f"""
import sys
sys.modules["torch"] = sys.modules["nncf"] = None
import logging, numpy as np
from pathlib import Path
from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.engines.openvino_graph import read
from pthserve.images.preprocess import normalise
from pthserve.images.spec import Spec
spec = {TINY!r}
engine = OpenVINOEngine(read(Path({str(tmp_path / "model.xml")!r})), spec)
assert engine(np.zeros((2, *spec.image_shape), np.uint8)).shape == (2, 7)
assert logging.getLogger().level == logging.WARNING
assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)
"""
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(home), "PATH": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(home.iterdir())


FAMILIES = {
    "alexnet": 96,
    "convnext_tiny": 96,
    "densenet121": 96,
    "efficientnet_b0": 96,
    "efficientnet_v2_s": 96,
    "googlenet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 96,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 96,
    "regnet_y_400mf": 96,
    "resnet18": 96,
    "resnext50_32x4d": 96,
    "shufflenet_v2_x0_5": 96,
    "squeezenet1_1": 96,
    "swin_t": 96,
    "swin_v2_t": 96,
    "vgg11": 96,
    "vit_b_32": 224,
    "wide_resnet50_2": 96,
}
"""The smallest of each family, and the side of small images that it takes; some take one size alone."""
USUAL = {name: 299 if name == "inception_v3" else 224 for name in (*FAMILIES, "vit_b_16")}
"""With images of the size that it was trained on."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(
            pytest.param(*one, marks=pytest.mark.long if one[0] == "maxvit_t" else ())
            for one in FAMILIES.items()
        ),
        *(pytest.param(*one, marks=pytest.mark.long) for one in USUAL.items() if one not in FAMILIES.items()),
    ],
)
def test_every_family_converts_and_computes_as_exactly_as_torch(
    name: str, size: int, build: Build, pixels: Pixels
) -> None:
    """Held to float64: to 1e-5 of the largest logit, or to three times what PyTorch itself rounds away.

    Three families round more than that, in PyTorch too: Inception 3e-5, ResNeXt 2e-5 and GoogLeNet 1e-5.
    """
    spec = Spec(crop=(size, size))
    module = build(name, spec)
    engine = OpenVINOEngine(convert(module, spec), spec, threads=2)
    images = pixels(spec, 8)
    tensors = normalise(images, spec)
    with torch.no_grad():
        rounded = module(torch.from_numpy(tensors)).numpy()
        exact = copy.deepcopy(module).double()(torch.from_numpy(tensors).double()).numpy()
    tolerance = max(1e-5 * np.abs(exact).max(), 3 * np.abs(rounded - exact).max())
    for count in (1, 3, 8):
        for batch in (images[:count], tensors[:count]):
            assert np.abs(engine(batch) - exact[:count]).max() < tolerance
