"""A detector as users have it: in Python, over HTTP and gRPC, on the command line, in a picture."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from pthserve.errors import CardError, EngineError, GoldenError
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import load
from pthserve.loading.loader import Loader
from pthserve.loading.model import Model
from pthserve.planning.crops import samples
from pthserve.tasks.objects import DetectionAnswer

from ..cli.called import called
from ..http_service import Service
from ..linear import noise, png
from ..zoos.detectors import detector
from .asking import inferred, inferred_by_grpc
from .own_weights import LABELS, SETTINGS, predicted, write_card, written
from .test_masks import decoded
from .torch_free import answers

pytestmark = pytest.mark.slow

NAME = "maskrcnn_resnet50_fpn"
FEW = {"min_size": 96, "max_size": 144, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 20}
"""Arguments with which a pass is short."""
ROUNDING = 1e-3
"""Of scores: with these weights, torchvision's own at float32 and at float64 differ by up to 4.5e-4."""
TORCH = SETTINGS.model_copy(update={"engine": "torch"})
"""For what does not depend on the engine: converting the model takes seconds."""
CARD: dict[str, Any] = {"architecture": NAME, "kwargs": FEW, "labels": LABELS}
PHOTO = samples()[0]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return detector(NAME, **FEW)


@pytest.fixture(scope="module")
def folder(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN whose card leaves out its task and the background's label."""
    folder = written(tmp_path_factory.mktemp("made") / "net", module, **CARD)
    (folder / "photo.jpg").write_bytes(PHOTO)
    return folder


@pytest.fixture(autouse=True)
def usual_card(folder: Path) -> Iterator[None]:
    """Each test begins with the same folder."""
    yield
    card(folder)
    (folder / "other.png").unlink(missing_ok=True)


def card(folder: Path, **fields: Any) -> None:
    write_card(folder, **{**CARD, **fields})


@pytest.fixture(scope="module")
def expected(module: nn.Module) -> dict[str, torch.Tensor]:
    """What torchvision finds in the photo, with a score of 0.5 or more."""
    with torch.inference_mode():
        (found,) = module([to_tensor(Image.open(io.BytesIO(PHOTO)).convert("RGB"))])
    likely = found["scores"] >= 0.5
    assert likely.sum() > 1, "a test without objects proves nothing"
    return {name: values[likely] for name, values in found.items()}


def check(boxes: Any, expected: dict[str, torch.Tensor]) -> None:
    """The boxes are those that are expected, in any order: of random weights, scores are nearly equal."""
    assert len(boxes) == len(expected["boxes"])
    apart = abs(np.asarray(boxes)[:, None] - expected["boxes"].numpy()).max(-1)
    assert apart.min(0).max() < 0.1
    assert apart.min(1).max() < 0.1


def test_a_call_in_python_gives_torchvision_s_objects(
    model: Model, expected: dict[str, torch.Tensor]
) -> None:
    found = model(PHOTO)
    check(found.boxes, expected)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=ROUNDING)
    assert sorted(found.names) == sorted(["", *LABELS][index] for index in expected["labels"])
    assert model.does == "finds objects of 5 classes, with boxes and masks"
    several = model.batch([PHOTO, png(noise(1, 70, 120)), PHOTO])
    assert [one.size for one in several] == [found.size, (120, 70), found.size]
    np.testing.assert_array_equal(several[2].boxes, found.boxes)


def test_json_has_the_objects_and_their_masks(service: Service, expected: dict[str, torch.Tensor]) -> None:
    answer = predicted(service, PHOTO)
    DetectionAnswer.model_validate(answer)
    check([one["box"] for one in answer["detections"]], expected)
    assert all(one["mask"]["size"] == answer["size"] for one in answer["detections"])
    assert set(answer) == {*DetectionAnswer.model_fields, "model", "timing"}


def test_a_request_chooses_threshold_and_number_and_whether_there_are_masks(service: Service) -> None:
    all_of_them = predicted(service, PHOTO, threshold=0.05)["detections"]
    assert len(all_of_them) > len(predicted(service, PHOTO)["detections"])
    assert predicted(service, PHOTO, threshold=0.05, max=2)["detections"] == all_of_them[:2]
    assert "mask" not in predicted(service, PHOTO, masks="none")["detections"][0]
    reply = service.client.post("/predict", files={"image": PHOTO}, params={"threshold": 7})
    assert (reply.status_code, reply.json()["error"]) == (400, "`threshold` must be a number, from 0 to 1")


def test_images_of_other_sizes_are_answered_beside_each_other(service: Service) -> None:
    sizes = [(64, 48), (300, 200), (90, 240)]
    files = [("images", png(noise(2, *size[::-1]))) for size in sizes]
    reply = service.client.post("/predict", files=files)
    assert reply.status_code == 200, reply.text
    assert [one["size"][::-1] for one in reply.json()["predictions"]] == [list(size) for size in sizes]


def test_png_is_a_picture_with_the_objects_drawn_over_the_image(service: Service) -> None:
    headers = {"Accept": "image/png"}
    reply = service.client.post("/predict", files={"image": PHOTO}, headers=headers)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    drawn, photo = Image.open(io.BytesIO(reply.content)), Image.open(io.BytesIO(PHOTO)).convert("RGB")
    assert drawn.size == photo.size
    assert (np.asarray(drawn) != np.asarray(photo)).any()
    params = {"threshold": 1}
    plain = service.client.post("/predict", files={"image": PHOTO}, headers=headers, params=params)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(plain.content))), np.asarray(photo))
    large = png(noise(3, 20, 2400))
    reduced = service.client.post("/predict", files={"image": large}, headers=headers)
    assert Image.open(io.BytesIO(reduced.content)).size == (2048, 17)
    two = service.client.post("/predict", files=[("images", PHOTO)] * 2, headers=headers)
    assert two.status_code == 400


def test_an_image_too_narrow_for_the_model_costs_the_client_an_error(service: Service) -> None:
    reply = service.client.post("/predict", files={"image": png(noise(1, 20_000, 1))})
    assert reply.status_code == 415
    assert "less narrow" in reply.json()["error"]


def test_tensors_over_rest_and_grpc_are_those_of_the_metadata(
    service: Service, expected: dict[str, torch.Tensor]
) -> None:
    images = [PHOTO, png(noise(2, 48, 64))]
    reply = inferred(service, images)
    assert reply.status_code == 200, reply.text
    rest = {one["name"]: one for one in reply.json()["outputs"]}
    metadata = service.client.get("/v2/models/net").json()
    assert [one["name"] for one in metadata["outputs"]] == list(rest)
    assert metadata["inputs"][2]["shape"] == [-1, 3, -1, -1]
    boxes = np.reshape(rest["boxes"]["data"], rest["boxes"]["shape"])
    first = np.array(rest["image_index"]["data"]) == 0
    check(boxes[first], expected)
    assert len(rest["masks"]["data"]) == len(rest["label"]["data"]) == len(boxes)

    outputs = inferred_by_grpc(service, images)
    assert list(outputs) == list(rest)
    np.testing.assert_allclose(
        outputs["boxes"].contents.fp32_contents, np.float32(rest["boxes"]["data"]), rtol=1e-6
    )


def test_a_tensor_larger_than_what_images_are_resized_to_is_refused(service: Service) -> None:
    for side, status in ((64, 200), (200, 400)):
        shape = [1, 3, side, side]
        tensor = {"name": "tensor", "datatype": "FP32", "shape": shape, "data": [0.0] * (3 * side * side)}
        reply = service.client.post("/v2/models/net/infer", json={"inputs": [tensor]})
        assert reply.status_code == status, reply.text


def test_objects_are_counted_by_label(service: Service) -> None:
    label = predicted(service, PHOTO)["detections"][0]["label"]
    name = f'pthserve_predictions_total{{label="{label}"}}'
    before = service.metric(name)
    found = [one["label"] for one in predicted(service, PHOTO)["detections"]]
    assert service.metric(name) - before == found.count(label)


def test_the_schema_describes_objects_and_parameters(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    assert {"threshold", "max", "masks"} <= {one["name"] for one in predict["parameters"]}
    assert "image/png" in predict["responses"]["200"]["content"]
    assert "detections" in document["components"]["schemas"]["Answer"]["properties"]


def test_info_says_what_is_served(service: Service) -> None:
    info = service.client.get("/info").json()
    assert info["task"] == {"name": "detection", "most": 20, "mask": 28, "threshold": 0.5} | {
        "keypoints": 0,
        "keypoint_names": [],
    }


def test_predict_shows_a_table_and_draws(folder: Path, service: Service, tmp_path: Path) -> None:
    here, there = tmp_path / "here.png", tmp_path / "there.png"
    few = ("--max", "3", "--threshold", "0.05")
    shown = called("predict", folder, folder / "photo.jpg", "--draw", here, *few)
    assert shown.returncode == 0, shown.stderr
    assert sum(any(label in line for label in LABELS) for line in shown.stdout.splitlines()) == 3
    remote = called("predict", service.url, folder / "photo.jpg", "--draw", there, *few)
    assert remote.returncode == 0, remote.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(here)), np.asarray(Image.open(there)))
    told = called("predict", service.url, folder / "photo.jpg", "--json", "--threshold", "0.05")
    assert len(json.loads(told.stdout)[0]["detections"]) > 3


def test_golden_images_are_recorded_checked_and_disagree_where_an_object_is_not_there(folder: Path) -> None:
    recorded = called("golden", folder, folder / "photo.jpg", "--engine", "torch")
    assert recorded.returncode == 0, recorded.stderr
    values = yaml.safe_load((folder / "model.yaml").read_text())
    assert values["golden"][0]["boxes"]
    with load(str(folder), TORCH) as model:
        assert apply_golden_policy(model, TORCH) == "agreed"
    values["golden"][0]["boxes"][0] = {"label": "owl", "box": [0, 0, 3, 3]}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    with load(str(folder), TORCH) as model, pytest.raises(GoldenError, match="no owl at 0 0 3 3"):
        apply_golden_policy(model, TORCH)
    checked = called("golden", folder, "--engine", "torch")
    assert checked.returncode == 4
    assert "no owl at 0 0 3 3" in checked.stderr


def test_a_pack_has_the_same_objects_without_pytorch_and_its_golden_images_are_checked(
    folder: Path, tmp_path: Path
) -> None:
    sizes = [(200, 150), (90, 130), (128, 128)]
    images = [tmp_path / f"{width}.png" for width, _ in sizes]
    for size, file in zip(sizes, images, strict=True):
        Image.open(io.BytesIO(PHOTO)).convert("RGB").resize(size).save(file)
    card(folder, task="detection", threshold=0.3)  # so that each of these images has objects
    shutil.copy(images[1], folder / "other.png")
    recorded = called("golden", folder, folder / "photo.jpg", folder / "other.png", "--engine", "torch")
    assert recorded.returncode == 0, recorded.stderr
    done = called("pack", folder, "--output", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    task = json.loads((tmp_path / "packed" / "manifest.json").read_text())["task"]
    assert (task["name"], task["most"], task["mask"]) == ("detection", 20, 28)
    by_torch = load(str(folder), TORCH)
    for file, answer in zip(images, answers(tmp_path / "packed", images, golden=2), strict=True):
        same(answer, by_torch(file).to_dict(1))
    by_torch.close()


def same(answer: dict[str, Any], other: dict[str, Any]) -> None:
    """Both have the same objects, in any order; the masks differ in less than 1 of 1000 pixels."""
    found, known = answer["detections"], other["detections"]
    assert len(found) == len(known) > 1
    for one in found:
        apart = [np.abs(np.subtract(one["box"], two["box"])).max() for two in known]
        two = known[int(np.argmin(apart))]
        assert min(apart) < 0.1
        assert one["label"] == two["label"]
        assert one["score"] == pytest.approx(two["score"], abs=ROUNDING)
        differ = decoded(one["mask"]) != decoded(two["mask"])
        assert differ.mean() < 0.001


def test_a_service_packs_it_once_and_then_starts_without_pytorch(
    folder: Path,
    expected: dict[str, torch.Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = SETTINGS.model_copy(update={"cache_dir": tmp_path, "precision": "fp32"})
    for words in ("packing", ""):
        caplog.clear()
        with caplog.at_level("INFO", "pthserve"), Loader(str(folder), settings, size=10**9)() as model:
            assert (model.forward.name, model.forward.precision) == ("openvino", "fp32")
            check(model(PHOTO).boxes, expected)
        assert ("packing" in caplog.text) == bool(words)


def test_int8_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    refused = called("pack", folder, "--output", tmp_path / "packed", "--precision", "int8")
    assert refused.returncode == 3
    assert "a detector or a segmentation model is not quantised to int8" in refused.stderr
    with pytest.raises(EngineError, match="is not quantised to int8"):
        load(str(folder), SETTINGS.model_copy(update={"precision": "int8"}))


def test_a_card_of_another_task_is_refused(folder: Path) -> None:
    card(folder, task="multilabel")
    with pytest.raises(CardError, match="state `task: detection`"):
        load(str(folder), SETTINGS)
    card(folder, threshold=0.05)
    with load(str(folder), TORCH) as model:
        assert model(PHOTO).threshold == 0.05
