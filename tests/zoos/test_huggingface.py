"""A folder of `save_pretrained` is served with the numbers of transformers' pipeline, and runs no code."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import pthserve.images
from pthserve.certainty import Origin
from pthserve.errors import ArchitectureError, CardError, ModelError
from pthserve.images.preprocess import crop, normalise
from pthserve.images.spec import Spec
from pthserve.loading.load import build, load
from pthserve.loading.model import Model
from pthserve.loading.pack import pack
from pthserve.options import ModelOptions
from pthserve.zoos import image_processor
from pthserve.zoos.timm import TIMM

from .families import FAMILIES, LABELS, save

OPTIONS = ModelOptions(threads=1, tune_budget=0.0, precision="fp32")
PHOTOS = sorted((Path(pthserve.images.__file__).parent / "samples").glob("*.jpg"))
FEW = ("vit",)
"""Families of the default run; the others are marked slow."""
EXACT, ROUNDED = 1e-4, 1e-2
"""Of a probability: with Pillow, as here; with torchvision, which rounds some pixels to other levels."""

DEAF = ("efficientnet", "efficientnet_offset", "mobilevit")
"""Families whose tiny networks of random weights answer the same whatever the image."""

ALL = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
    if name not in DEAF
]


def by_pipeline(folder: Path, backend: str) -> Any:
    """Probabilities of the photos, in the order of the classes, by transformers' own pipeline."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = transformers.AutoImageProcessor
        processor = made.from_pretrained(folder, backend=backend)
        ask = transformers.pipeline(
            "image-classification", str(folder), image_processor=processor, device="cpu"
        )
        found = [{one["label"]: one["score"] for one in ask(str(photo), top_k=None)} for photo in PHOTOS]
    return np.array([[answer[label] for label in LABELS.values()] for answer in found])


def probabilities(model: Model) -> Any:
    return np.stack([model(photo).probabilities for photo in PHOTOS])


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_a_folder_answers_as_transformers_own_pipeline(tmp_path: Path, family: str) -> None:
    save(tmp_path, family)
    with load(str(tmp_path), OPTIONS) as model:
        found = probabilities(model)
        assert model.labels == tuple(LABELS.values())
        assert not [one for one in model.inferred if one.uncertain]
    assert np.ptp(found, 0).max() > 1e-3, "the answers depend on the image"
    assert np.abs(found - by_pipeline(tmp_path, "pil")).max() < EXACT
    assert np.abs(found - by_pipeline(tmp_path, "torchvision")).max() < ROUNDED


@pytest.mark.slow
@pytest.mark.parametrize("family", DEAF)
def test_the_networks_input_is_that_of_the_familys_own_processor(tmp_path: Path, family: str) -> None:
    import transformers

    save(tmp_path, family)
    spec = build(str(tmp_path), OPTIONS).spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = transformers.AutoImageProcessor
        processor = made.from_pretrained(tmp_path, backend="pil")
    for photo in PHOTOS:
        ours = normalise(crop(photo.read_bytes(), spec, max_pixels=2**30)[None], spec)
        theirs = processor(images=Image.open(photo).convert("RGB"), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    save(folder, "vit")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edited(folder: Path, name: str = "config.json", **fields: Any) -> Path:
    values = json.loads((folder / name).read_text())
    values.update(fields)
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    return folder


@pytest.mark.slow
def test_a_pack_of_a_folder_answers_the_same(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "packed", OPTIONS)
    with load(str(folder), OPTIONS) as model, load(str(tmp_path / "packed"), OPTIONS) as packed:
        np.testing.assert_allclose(probabilities(packed), probabilities(model), atol=1e-5)
        assert packed.labels == model.labels


def test_the_weights_file_alone_is_the_same_model(folder: Path) -> None:
    assert build(str(folder / "model.safetensors"), OPTIONS).architecture.name == "huggingface/vit"


def test_placeholders_are_no_labels(folder: Path) -> None:
    edited(folder, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert build(str(folder), OPTIONS).labels == ("0", "1", "2")


def test_several_labels_an_image_are_not_taken_for_one(folder: Path) -> None:
    built = build(str(edited(folder, problem_type="multi_label_classification")), OPTIONS)
    assert built.task.name == "multilabel"


def test_a_configuration_beside_other_weights_is_for_its_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "pets.pth")
    config = {"model_type": "vit", "id2label": {str(number): label for number, label in LABELS.items()}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.yaml").write_text("labels: config.json")
    built = build(str(tmp_path), OPTIONS)
    assert (built.architecture.name, built.labels) == ("squeezenet1_1", tuple(LABELS.values()))


def test_without_a_processor_the_familys_default_is_told(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    built = build(str(edited(folder)), OPTIONS)
    told = next(one for one in built.inferred if one.subject == "preprocessing")
    assert told.origin == Origin.DEFAULT
    assert told.uncertain
    assert built.spec.crop == (64, 64), "the size that config.json states"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "side"), [("resnet", 224), ("swin", 64), ("convnext", 224)])
def test_without_a_processor_the_default_is_that_of_the_familys_published_models(
    tmp_path: Path, family: str, side: int
) -> None:
    save(tmp_path, family)
    (tmp_path / "preprocessor_config.json").unlink()
    spec = build(str(tmp_path), OPTIONS).spec
    assert (spec.crop, spec.interpolation, spec.mean) == ((side, side), "bicubic", (0.485, 0.456, 0.406))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "weights", "resize"),
    [
        ("convnext", "convnext_tiny.fb_in1k", 256),
        ("convnextv2", "convnextv2_tiny.fcmae_ft_in1k", 256),
        ("regnet", "regnety_040.pycls_in1k", 256),
        ("resnet", "resnet50.a1_in1k", 256),
        ("swin", "swin_tiny_patch4_window7_224.ms_in1k", (224, 224)),
        ("deit", "deit_base_distilled_patch16_224.fb_in1k", (256, 256)),
    ],
)
def test_published_settings_are_those_of_the_same_weights_in_timm(
    family: str, weights: str, resize: int | tuple[int, int]
) -> None:
    """What is cut off is as by the processor in transformers: timm cuts off less of some."""
    spec, _ = image_processor.read(image_processor.PUBLISHED[family], family)
    theirs = TIMM.spec(weights)
    assert (spec.crop, spec.interpolation) == (theirs.crop, theirs.interpolation)
    np.testing.assert_allclose([spec.mean, spec.std], [theirs.mean, theirs.std], rtol=1e-6)
    assert spec.resize == resize
    default = image_processor.read({}, family)[0]
    assert (spec.mean, spec.interpolation) != (default.mean, default.interpolation)


def test_golden_images_settle_preprocessing_that_no_file_states(folder: Path) -> None:
    """Where the images were prepared as torchvision's models take them, say."""
    (folder / "preprocessor_config.json").unlink()
    spec = Spec(round(64 * 256 / 224), (64, 64))
    model = build(str(folder), OPTIONS).architecture.module
    assert model is not None
    golden = []
    for photo in PHOTOS[:3]:
        (folder / photo.name).write_bytes(photo.read_bytes())
        image = torch.from_numpy(normalise(crop(photo.read_bytes(), spec, max_pixels=2**30)[None], spec))
        with torch.no_grad():
            probability, index = model(image).softmax(1).max(1)
        known = {"class_index": int(index), "probability": round(float(probability), 6)}
        golden.append({"image": photo.name, **known})
    (folder / "model.yaml").write_text(json.dumps({"golden": golden}))
    built = build(str(folder), OPTIONS)
    told = next(one for one in built.inferred if one.subject == "preprocessing")
    assert (told.origin, built.spec.mean, built.spec.resize) == (Origin.GOLDEN, spec.mean, spec.resize)


def test_the_cards_preprocessing_counts_more(folder: Path) -> None:
    (folder / "model.yaml").write_text("preprocessing: {resize: 80, crop: 64}")
    built = build(str(folder), OPTIONS)
    assert (built.spec.resize, built.spec.mean) == (80, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    "fields",
    [
        {"image_processor_type": "os.system"},
        {"image_processor_type": "PerceiverImageProcessor"},
        {"do_resize": False},
        {"size": {"shortest_edge": 64}},
        {"size": {"longest_edge": 64}},
        {"resample": 99},
        {"image_std": [0, 0, 0]},
    ],
    ids=str,
)
def test_a_processor_that_a_card_cannot_say_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        build(str(edited(folder, "preprocessor_config.json", **fields)), OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "evil.Model"}}, "auto_map: names code"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config: names code"),
        ({"model_type": "llama"}, "no image classifier, detector or segmentation model of the model_type"),
        ({"model_type": ["vit"]}, "no image classifier, detector or segmentation model of the model_type"),
        ({"architectures": ["ViTModel"]}, "save it with its head"),
        ({"hidden_size": 10**12}, r"hidden_size.*must be at most 1048576, and is 1e\+12"),
        ({"hidden_size": 10**6}, "cannot be built|has \\d+ parameters"),
        ({"num_hidden_layers": 10**6}, "more layers"),
        ({"hidden_size": 48}, "do not fit|parameters"),
        ({"num_hidden_layers": 1}, "it has no place for"),
        ({"hidden_act": "__import__"}, "cannot"),
        ({"hidden_size": "x"}, "cannot"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_of_the_weights_is_refused(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(str(edited(folder, **fields)), OPTIONS)


@pytest.mark.slow
def test_kernels_of_others_are_not_fetched(folder: Path) -> None:
    edited(
        folder, _attn_implementation="kernels-community/evil", attn_implementation="kernels-community/evil"
    )
    assert build(str(folder), OPTIONS).architecture.name == "huggingface/vit"


def test_labels_that_do_not_count_are_refused(folder: Path) -> None:
    with pytest.raises(CardError, match="id2label"):
        build(str(edited(folder, id2label={"0": "a", "2": "b", "3": "c"})), OPTIONS)


@pytest.mark.slow
def test_code_beside_the_weights_does_not_run_and_nothing_is_asked_of_the_network(folder: Path) -> None:
    for name in ("modeling_vit.py", "configuration_vit.py", "image_processing_vit.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')")
    code = (
        "import socket, sys\n"
        "def refuse(*arguments, **more): raise SystemExit(f'the network was asked: {arguments}')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "import pthserve\n"
        f"print(pthserve.load({str(folder)!r}, threads=1, engine='torch')({str(PHOTOS[0])!r}).label)\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in LABELS.values()
    assert "Loading weights" not in done.stderr
    assert not (folder / "ran").exists()


def test_without_transformers_the_line_that_installs_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pthserve.zoos.huggingface.find_spec", lambda name: None)
    with pytest.raises(ArchitectureError, match=r"pip install pthserve\[huggingface\]"):
        build(str(folder), OPTIONS)


@pytest.mark.slow
def test_weights_of_torch_save_are_the_same_model(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "weights.pth")
    expected = probabilities(load(str(folder / "model.safetensors"), OPTIONS))
    np.testing.assert_allclose(probabilities(load(str(folder / "weights.pth"), OPTIONS)), expected, atol=1e-6)
