"""An ONNX model is served without its class and without torch, with the numbers of the original."""

import contextlib
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError, CardError, ModelError, WeightsError
from pthserve.files import onnx_files, weights
from pthserve.images.preprocess import crop, normalise
from pthserve.images.spec import Spec
from pthserve.loading.load import Built, build, load
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.options import ModelOptions
from pthserve.planning.crops import samples
from pthserve.tasks.classification import softmax

from ..linear import noise
from .exports import CLASSES, SIDE, logits, network

OPTIONS = ModelOptions(threads=1, tune_budget=0.0, precision="fp32")
ROWS = ("n", CLASSES)


def answers(model: Model, spec: Spec | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits of `model` for the sample photos, and what the network itself gives for them."""
    images = normalise(
        np.stack([crop(data, model.spec, max_pixels=2**30) for data in samples()]), spec or model.spec
    )
    return np.stack([answer.logits for answer in model.batch(samples())]), logits(images)


def served(path: Path, card: str = "", **options: Any) -> Model:
    if card:
        (path.parent / "model.yaml").write_text(card)
    return load(str(path), OPTIONS.model_copy(update=options))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def about(built: Built | Model, subject: str) -> Inferred:
    return next(one for one in built.inferred if one.subject == subject)


def test_a_model_answers_as_its_network_does(tmp_path: Path) -> None:
    with served(network(tmp_path / "model.onnx")) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
        assert model.labels == ("0", "1", "2", "3", "4")
        assert model.spec.crop == (SIDE, SIDE)
        assert about(model, "preprocessing").origin == Origin.ASSUMED


@pytest.mark.slow
def test_a_pack_of_it_answers_the_same(tmp_path: Path) -> None:
    pack(str(network(tmp_path / "model.onnx")), tmp_path / "packed", OPTIONS)
    with load(str(tmp_path / "packed"), OPTIONS) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)


def test_golden_images_settle_its_preprocessing(tmp_path: Path) -> None:
    """Nothing in the file says whether images were squashed or cropped."""
    network(tmp_path / "model.onnx")
    spec = Spec((SIDE, SIDE), (SIDE, SIDE))
    golden = []
    for number, photo in enumerate(samples()[:3]):
        (tmp_path / f"{number}.jpg").write_bytes(photo)
        pixels = crop(photo, spec, max_pixels=2**30)[None]
        probabilities = softmax(logits(normalise(pixels, spec)))[0]
        best = int(probabilities.argmax())
        known = {"class_index": best, "probability": round(float(probabilities[best]), 6)}
        golden.append({"image": f"{number}.jpg", **known})
    (tmp_path / "model.yaml").write_text(json.dumps({"golden": golden}))
    with load(str(tmp_path), OPTIONS) as model:
        assert model.spec == spec
        assert about(model, "preprocessing").origin is Origin.GOLDEN


@pytest.mark.slow
def test_it_is_quantised_on_a_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(noise(number)).save(folder / f"{number}.png")
    path = network(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="--calibration"):
        served(path, precision="int8")
    with served(path, precision="int8", calibration=folder, tolerance=0.2) as model:
        found, expected = answers(model)
    assert model.plan.precision == "int8"
    assert np.abs(found - expected).max() > 0
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.slow
def test_it_is_served_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pthserve\n"
        f"model = pthserve.load({str(network(tmp_path / 'model.onnx'))!r}, threads=1)\n"
        f"print(model({str(Path(weights.__file__).parents[1] / 'images/samples/coffee.jpg')!r}).label)\n"
        "assert not {'torch', 'torchvision', 'onnx', 'transformers'} & sys.modules.keys()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_the_network_does_not_depend_on_is_freed(tmp_path: Path, batch: int) -> None:
    path = network(
        tmp_path / "model.onnx", shape=(batch, 3, SIDE, SIDE), outputs=[("logits", (batch, CLASSES))]
    )
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
        assert "one after the other" not in about(model, "architecture").value


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_the_network_was_made_for_is_computed_image_by_image(tmp_path: Path, batch: int) -> None:
    """As where an exporter wrote `reshape(1, -1)` down as numbers."""
    shaped = helper.make_node("Reshape", ["scores", "shape"], ["logits"])
    path = network(
        tmp_path / "model.onnx",
        shape=(batch, 3, SIDE, SIDE),
        outputs=[("logits", (batch, CLASSES))],
        after=[shaped],
        constants=[("shape", np.array([batch, CLASSES]))],
    )
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
        assert "one after the other" in about(model, "architecture").value
    pack(str(path), tmp_path / "packed", OPTIONS)
    with load(str(tmp_path / "packed"), OPTIONS) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)


def test_a_batch_that_is_free_by_its_shape_alone_is_not_believed(tmp_path: Path) -> None:
    """The mean of the batch is in each answer."""
    after = [
        helper.make_node("ReduceMean", ["scores"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["scores", "mean"], ["logits"]),
    ]
    with served(network(tmp_path / "model.onnx", after=after)) as model:
        found, expected = answers(model)
    np.testing.assert_allclose(found, 2 * expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("Softmax", {"axis": 1}), ("Softmax", {"axis": -1}), ("LogSoftmax", {"axis": 1})],
)
def test_a_softmax_at_the_end_is_not_applied_twice(
    tmp_path: Path, operator: str, attributes: dict[str, Any]
) -> None:
    after = [helper.make_node(operator, ["scores"], ["probabilities"], **attributes)]
    path = network(tmp_path / "model.onnx", after=after, outputs=[("probabilities", ROWS)])
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
        assert "softmax" in about(model, "activation").value


def test_a_softmax_behind_which_shapes_change_is_seen(tmp_path: Path) -> None:
    after = [
        helper.make_node("Softmax", ["scores"], ["rows"], axis=1),
        helper.make_node("Unsqueeze", ["rows", "axes"], ["maps4"]),
        helper.make_node("Identity", ["maps4"], ["output"]),
    ]
    path = network(
        tmp_path / "model.onnx",
        after=after,
        outputs=[("output", (*ROWS, 1, 1))],
        constants=[("axes", np.array([2, 3]))],
    )
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)


def test_a_softmax_that_an_exporter_took_apart_is_seen_by_its_answers(tmp_path: Path) -> None:
    after = [
        helper.make_node("Exp", ["scores"], ["exponents"]),
        helper.make_node("ReduceSum", ["exponents", "axis"], ["sum"], keepdims=1),
        helper.make_node("Div", ["exponents", "sum"], ["probabilities"]),
    ]
    path = network(
        tmp_path / "model.onnx",
        after=after,
        outputs=[("probabilities", ROWS)],
        constants=[("axis", np.array([1]))],
    )
    with served(path) as model:
        found, expected = answers(model)
        assert "softmax" in about(model, "activation").value
    exponents = np.exp(expected)
    np.testing.assert_allclose(np.exp(found), exponents / exponents.sum(1, keepdims=True), atol=1e-5)


def test_a_sigmoid_at_the_end_is_not_taken_for_one_class_of_several(tmp_path: Path) -> None:
    after = [helper.make_node("Sigmoid", ["scores"], ["scores01"])]
    path = network(tmp_path / "model.onnx", after=after, outputs=[("scores01", ROWS)])
    with served(path) as model:
        assert model.task.name == "multilabel"
        assert "ends in a sigmoid" in about(model, "task").value


@pytest.mark.slow
def test_of_several_outputs_logits_counts_or_the_only_one_with_rows(tmp_path: Path) -> None:
    after = [
        helper.make_node("Identity", ["scores"], ["logits"]),
        helper.make_node("Mul", ["scores", "half"], ["other"]),
        helper.make_node("Identity", ["maps"], ["hidden"]),
    ]
    half = [("half", np.float32(0.5))]
    hidden = ("hidden", ("n", 8, SIDE - 2, SIDE - 2))
    outputs = [("other", ROWS), ("logits", ROWS), hidden]
    with served(network(tmp_path / "a.onnx", after=after, constants=half, outputs=outputs)) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
    outputs = [hidden, ("other", ROWS)]
    with served(network(tmp_path / "b.onnx", after=after, constants=half, outputs=outputs)) as model:
        found, expected = answers(model)
        np.testing.assert_allclose(found, expected / 2, atol=1e-4)


def test_of_several_outputs_that_could_count_the_card_says_which(tmp_path: Path) -> None:
    after = [
        helper.make_node("Mul", ["scores", "half"], ["one"]),
        helper.make_node("Identity", ["scores"], ["two"]),
    ]
    path = network(
        tmp_path / "model.onnx",
        after=after,
        constants=[("half", np.float32(0.5))],
        outputs=[("one", ROWS), ("two", ROWS)],
    )
    with pytest.raises(ArchitectureError, match=r"2 outputs \(one, two\).*kwargs: \{output: one\}"):
        served(path)
    with served(path, "kwargs: {output: two}") as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
    with pytest.raises(ArchitectureError, match=r"no output 'three'; its outputs are one, two"):
        served(path, "kwargs: {output: three}")
    with pytest.raises(ArchitectureError, match="not width"):
        served(path, "kwargs: {width: 2}")
    with pytest.raises(ArchitectureError, match="remove `architecture: resnet18` from"):
        served(path, "architecture: resnet18")


def test_channels_may_be_last(tmp_path: Path) -> None:
    before = [helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2])]
    path = network(tmp_path / "model.onnx", shape=("n", SIDE, SIDE, 3), before=before)
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)


def test_an_image_that_is_not_square_is_cropped_to_the_size_of_the_file(tmp_path: Path) -> None:
    with served(network(tmp_path / "model.onnx", shape=("n", 3, 24, 40))) as model:
        assert model.spec.crop == (24, 40)
        np.testing.assert_allclose(*answers(model), atol=1e-4)


@pytest.mark.slow
def test_a_size_that_is_free_is_224_or_the_cards(tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx", shape=("n", 3, "height", "width"))
    with served(path) as model:
        assert model.spec.crop == (224, 224)
        np.testing.assert_allclose(*answers(model), atol=1e-4)
    with served(path, "preprocessing: {resize: 40, crop: 36}") as model:
        assert model.spec.crop == (36, 36)
        np.testing.assert_allclose(*answers(model), atol=1e-4)
        assert about(model, "preprocessing").origin == Origin.CARD


def test_a_size_of_the_card_that_the_file_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"takes images of 32 x 32 pixels .* crops to 36 x 36"):
        served(network(tmp_path / "model.onnx"), "preprocessing: {resize: 40, crop: 36}")


def test_grey_images_have_a_mean_of_one_number(tmp_path: Path) -> None:
    with served(network(tmp_path / "model.onnx", shape=("n", 1, SIDE, SIDE), channels=1)) as model:
        assert model.spec.channels == 1
        np.testing.assert_allclose(*answers(model), atol=1e-4)


@pytest.mark.slow
def test_whole_numbers_as_input_are_pixels_of_0_to_255(tmp_path: Path) -> None:
    before = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "most"], ["x"]),
    ]
    path = network(
        tmp_path / "model.onnx", before=before, kind=TensorProto.UINT8, constants=[("most", np.float32(255))]
    )
    with served(path) as model:
        assert (model.spec.mean, model.spec.std) == ((0.0,) * 3, (1.0,) * 3)
        np.testing.assert_allclose(*answers(model), atol=1e-4)
    with pytest.raises(ArchitectureError, match="whole numbers from 0 to 255"):
        served(path, "preprocessing: {resize: 36, crop: 32}")
    with served(path, "preprocessing: {resize: 36, crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}") as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)


MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 255])
@pytest.mark.parametrize("dividing", [True, False])
def test_a_normalisation_inside_the_graph_is_not_done_twice(
    tmp_path: Path, most: int, dividing: bool
) -> None:
    scale = most * STD if dividing else 1 / (most * STD)
    before = [
        helper.make_node("Sub", ["image", "mean"], ["centred"]),
        helper.make_node("Div" if dividing else "Mul", ["centred", "scale"], ["x"]),
    ]
    path = network(
        tmp_path / "model.onnx", before=before, constants=[("mean", most * MEAN), ("scale", scale)]
    )
    with served(path) as model:
        assert f"values of 0 to {most} itself" in about(model, "preprocessing").value
        assert about(model, "preprocessing").uncertain
        np.testing.assert_allclose(*answers(model, Spec()), atol=1e-3)


def test_half_precision_is_computed_in_full(tmp_path: Path) -> None:
    before = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT)]
    path = network(tmp_path / "model.onnx", before=before, kind=TensorProto.FLOAT16)
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-2)


@pytest.mark.slow
def test_golden_images_are_held_to(tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx")
    with served(path) as model:
        wrong = (model(samples()[0]).class_index + 1) % CLASSES
    (tmp_path / "photo.jpg").write_bytes(samples()[0])
    (tmp_path / "model.yaml").write_text(f"golden: [{{image: photo.jpg, class_index: {wrong}}}]")
    import pthserve

    with pytest.raises(pthserve.GoldenError, match="golden"):
        pthserve.load(path, threads=1)


# What a file keeps beside itself.


def test_weights_beside_the_file_are_read_and_count_in_the_digest(tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx", external="model.onnx.data")
    with served(path) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
    data = path.with_name("model.onnx.data")
    lines = "".join(f"{_sha256(file)}  {file.name}\n" for file in (path, data))
    assert model.digest == hashlib.sha256(lines.encode()).hexdigest()
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(changed)
    with pytest.raises(WeightsError, match="is expected"):
        served(path, sha256=model.digest)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../b", "..", "a\\..\\b", "a\nb", ""], ids=repr
)
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = network(tmp_path / "model.onnx", external="model.onnx.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"in the model's folder|no such file|is a folder"):
        served(path)


def test_weights_that_are_missing_or_short_are_said(tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx", external="model.onnx.data")
    data = path.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError):
        served(path)
    data.unlink()
    with pytest.raises(WeightsError, match=r"model\.onnx\.data: no such file"):
        served(path)


def test_weights_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    import os

    path = network(tmp_path / "model.onnx", external="model.onnx.data")
    path.with_name("model.onnx.data").unlink()
    os.mkfifo(path.with_name("model.onnx.data"))
    with pytest.raises(WeightsError, match="not a regular file"):
        served(path)


def test_no_copy_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with served(network(tmp_path / "model.onnx", external="model.onnx.data")) as model:
        np.testing.assert_allclose(*answers(model), atol=1e-4)
        assert list(folder.iterdir()) == []


# What is refused.


def test_operators_that_nobody_defines_are_named(tmp_path: Path) -> None:
    after = [helper.make_node("Fancy", ["scores"], ["logits"], domain="acme")]
    with pytest.raises(ArchitectureError, match="needs acme::Fancy, which ONNX does not define"):
        served(network(tmp_path / "model.onnx", after=after, domains=["acme"]))
    after = [helper.make_node("Imagined", ["scores"], ["logits"])]
    with pytest.raises(ArchitectureError, match=r"OpenVINO cannot read it.*Imagined"):
        served(network(tmp_path / "model.onnx", after=after))


def test_a_loop_is_refused(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ROWS),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ROWS),
        ],
    )
    after = [helper.make_node("Loop", ["times", "true", "scores"], ["logits"], body=body)]
    constants = [("times", np.array(2**62)), ("true", np.array(True))]
    with pytest.raises(ArchitectureError, match=r"contains a loop \(Loop\)"):
        served(network(tmp_path / "model.onnx", after=after, constants=constants))


def test_values_beyond_all_bounds_are_refused_before_they_are_computed(tmp_path: Path) -> None:
    after = [
        helper.make_node("ConstantOfShape", ["sides"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["scores", "sum"], ["logits"]),
    ]
    with pytest.raises(ArchitectureError, match=r"computes \d+ bytes for an image"):
        served(network(tmp_path / "model.onnx", after=after, constants=[("sides", np.array([2**20, 2**20]))]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("n", 4, SIDE, SIDE), "its input has the shape any x 4 x 32 x 32"),
        ((3, SIDE, SIDE), "its input has the shape 3 x 32 x 32"),
        (("n", "c", "h", "w"), "channels that are fixed in the file"),
    ],
)
def test_an_input_that_is_no_image_is_refused(tmp_path: Path, shape: Any, message: str) -> None:
    channels = shape[1] if shape[1] == 4 else 3
    before = [helper.make_node("Unsqueeze", ["image", "axes"], ["x"])] if len(shape) == 3 else []
    constants = [("axes", np.array([0]))]
    path = network(tmp_path / "a.onnx", shape=shape, channels=channels, before=before, constants=constants)
    with pytest.raises(ArchitectureError, match=message):
        served(path)


def test_a_second_input_is_named(tmp_path: Path) -> None:
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ROWS)
    after = [helper.make_node("Add", ["scores", "mask"], ["logits"])]
    with pytest.raises(ArchitectureError, match=r"has 2 inputs .*input mask: f32"):
        served(network(tmp_path / "model.onnx", after=after, inputs=[mask]))


def test_a_map_as_output_is_refused(tmp_path: Path) -> None:
    after = [helper.make_node("Identity", ["maps"], ["logits"])]
    with pytest.raises(ArchitectureError, match="not a number for each class"):
        served(network(tmp_path / "model.onnx", after=after, outputs=[("logits", ("n", 8, 30, 30))]))


def test_labels_that_are_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="labels"):
        served(network(tmp_path / "model.onnx"), "labels: [a, b]")


@pytest.mark.parametrize("end", [10, 200, 500, -1])
def test_a_file_that_is_cut_short_is_said(tmp_path: Path, end: int) -> None:
    path = network(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ModelError):
        served(path)


def test_parts_without_end_are_not_walked_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "FIELDS", 20)
    with pytest.raises(ModelError, match="more than 20 parts"):
        served(network(tmp_path / "model.onnx"))


@pytest.mark.slow
def test_random_bytes_in_the_file_do_no_harm(tmp_path: Path) -> None:
    """Each is read or refused with a sentence."""
    path = network(tmp_path / "model.onnx")
    data = path.read_bytes()
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    random = np.random.default_rng(seed)
    for _ in range(60):
        mutated = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 8)):
            mutated[place] = random.integers(0, 256)
        path.write_bytes(mutated)
        with contextlib.suppress(ModelError):
            build(str(path), OPTIONS)


def test_inspect_shows_the_inputs_and_outputs(tmp_path: Path) -> None:
    from ..cli.called import called

    path = network(tmp_path / "model.onnx")
    shown = called("inspect", str(path)).stdout
    assert "input image: f32 [?,3,32,32]" in shown
    assert "output logits: f32 [?,5]" in shown
    found = json.loads(called("inspect", "--json", str(path)).stdout)
    assert found["format"] == "onnx"
    assert found["flops"] is None
    assert found["parameters"] == 3 * 8 * 9 + 8 * CLASSES
