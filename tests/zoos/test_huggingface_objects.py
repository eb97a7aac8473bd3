"""A folder with a detector or a segmentation model answers as transformers' own processor and model do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pthserve.images
from pthserve.certainty import Origin
from pthserve.errors import ArchitectureError, CardError
from pthserve.images.spec import Spec
from pthserve.loading.load import build, load
from pthserve.options import ModelOptions

from .hf_objects import DETECTORS, LABELS, SEGMENTERS, save

OPTIONS = ModelOptions(threads=1, tune_budget=0.0, precision="fp32")
PHOTOS = sorted((Path(pthserve.images.__file__).parent / "samples").glob("*.jpg"))[:4]


ALIKE = "mobilevit"
"""The scores of this family's tiny network of random weights are nearly the same for all classes."""


def ran(model: Any, processor: Any, photo: Path) -> tuple[Any, tuple[int, int]]:
    """What transformers' model gives for a photo, and (height, width) of that."""
    image = Image.open(photo).convert("RGB")
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs), image.size[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("family", DETECTORS)
def test_a_detector_finds_what_transformers_finds(tmp_path: Path, family: str) -> None:
    original, processor = save(tmp_path, family)
    with load(str(tmp_path), OPTIONS) as model:
        assert model.labels == tuple(LABELS.values())
        assert not [one for one in model.inferred if one.uncertain]
        different = []
        for photo in PHOTOS:
            outputs, size = ran(original, processor, photo)
            (wanted,) = processor.post_process_object_detection(outputs, 0.2, [size])
            order = wanted["scores"].argsort(descending=True, stable=True)
            found = model(photo).at(0.2)
            assert len(found) == len(order) > 0
            np.testing.assert_allclose(found.scores, wanted["scores"][order], atol=1e-4)
            np.testing.assert_allclose(found.boxes, wanted["boxes"][order], atol=0.01)
            assert found.class_indices.tolist() == wanted["labels"][order].tolist()
            different.append(found.scores[0])
        assert np.ptp(different) > 1e-3, "the answers depend on the image"


@pytest.mark.slow
@pytest.mark.parametrize("family", SEGMENTERS)
def test_a_segmentation_model_gives_the_class_map_of_transformers(tmp_path: Path, family: str) -> None:
    original, processor = save(tmp_path, family)
    with load(str(tmp_path), OPTIONS) as model:
        assert model.labels == tuple(LABELS.values())
        assert model.task.name == "segmentation"
        for photo in PHOTOS:
            outputs, size = ran(original, processor, photo)
            (wanted,) = processor.post_process_semantic_segmentation(
                outputs, target_sizes=[size], return_segmentation_scores=True
            )
            found = model(photo)
            scores = torch.from_numpy(found.scores.values.copy())[None]
            resized = torch.nn.functional.interpolate(scores, size, mode="bilinear")[0]
            largest = max(1.0, float(wanted.segmentation_scores.abs().max()))
            np.testing.assert_allclose(resized, wanted.segmentation_scores, atol=1e-4 * largest)
            first, second = wanted.segmentation_scores.topk(2, 0).values
            clear = (first - second > 1e-4).numpy()
            assert clear.mean() > 0.9 or family == ALIKE
            assert (found.class_map == wanted.segmentation.numpy())[clear].all()


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (640, 640), (2000, 300), (300, 2000), (801, 1333), (96, 128), (96, 97)]
)
@pytest.mark.parametrize("rule", ["detr", "yolos"])
def test_sides_are_rounded_as_transformers_does_it(size: tuple[int, int], rule: Any) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio
    from transformers.models.yolos.image_processing_pil_yolos import get_size_with_aspect_ratio_yolos

    theirs = get_size_with_aspect_ratio if rule == "detr" else get_size_with_aspect_ratio_yolos
    for shorter, longer in ((800, 1333), (96, 130), (512, 864), (480, 480)):
        spec = Spec.uncropped(shorter, longest=longer, sides=rule)
        assert spec.resized(*size)[::-1] == theirs(size[::-1], shorter, longer)


def test_a_backbone_that_would_be_fetched_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "detr")
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    for change, reason in (
        ({"backbone_config": None, "backbone": "owner/name", "use_timm_backbone": False}, "not fetched"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf_hub:a/b"}}, "names a model"),
        ({"backbone_config": {**values["backbone_config"], "auto_map": {"a": "b"}}}, "names code"),
    ):
        file.write_text(json.dumps({**values, **change}))
        with pytest.raises(ArchitectureError, match=reason):
            build(str(tmp_path), OPTIONS)


@pytest.mark.slow
def test_a_configuration_of_an_older_transformers_names_a_backbone_of_timm(tmp_path: Path) -> None:
    """As the published DETR models have it; timm builds that without weights of its own."""
    timm = {
        "model_type": "timm_backbone",
        "backbone": "resnet18",
        "out_indices": [1, 2, 3, 4],
        "features_only": True,
        "use_pretrained_backbone": False,
    }
    original, processor = save(tmp_path, "detr", backbone_config=timm)
    file = tmp_path / "config.json"
    values = {**json.loads(file.read_text()), "backbone_config": None, "backbone": "resnet18"}
    file.write_text(json.dumps({**values, "use_timm_backbone": True, "use_pretrained_backbone": True}))
    with load(str(tmp_path), OPTIONS) as model:
        outputs, size = ran(original, processor, PHOTOS[0])
        (wanted,) = processor.post_process_object_detection(outputs, 0.2, [size])
        np.testing.assert_allclose(
            model(PHOTOS[0]).at(0.2).scores, wanted["scores"].sort(descending=True).values, atol=1e-4
        )


def test_a_segmentation_model_whose_processor_crops_needs_another_preprocessing(tmp_path: Path) -> None:
    original, _ = save(
        tmp_path, "mobilevit", processor={"size": {"shortest_edge": 72}, "do_center_crop": True}
    )
    with pytest.raises(CardError, match=r"does not get the rest of an image.*state `resize: \[256, 256\]`"):
        build(str(tmp_path), OPTIONS)
    (tmp_path / "model.yaml").write_text("preprocessing: {resize: [64, 64], crop: 64}")
    assert build(str(tmp_path), OPTIONS).task.name == "segmentation"
    assert original.config.num_labels == len(LABELS)


def test_labels_and_preprocessing_are_of_the_folder(tmp_path: Path) -> None:
    save(tmp_path, "segformer")
    built = build(str(tmp_path), OPTIONS)
    assert (built.labels, built.task.name) == (tuple(LABELS.values()), "segmentation")
    assert built.spec.crop == (64, 64)
    origins = {one.subject: one.origin for one in built.inferred}
    assert origins["labels"] == origins["preprocessing"] == origins["task"] == Origin.FILE
