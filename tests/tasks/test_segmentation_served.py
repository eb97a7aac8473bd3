"""A segmentation model as users have it: in Python, over HTTP and gRPC, on the command line, in a picture."""

import base64
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
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate
from torchvision.transforms._presets import SemanticSegmentation

from pthserve.engines.openvino_engine import precisions
from pthserve.errors import CardError, EngineError, GoldenError
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import load
from pthserve.loading.loader import Loader
from pthserve.loading.model import Model
from pthserve.planning.crops import samples
from pthserve.tasks.segments import SegmentationAnswer

from ..cli.called import called
from ..http_service import Service, serving
from ..http_wire import connect, exchange, head
from ..linear import noise, png
from ..shared import until
from ..zoos.segmenters import segmenter
from .asking import inferred, inferred_by_grpc
from .own_weights import LABELS, SETTINGS, predicted, write_card, written
from .test_masks import decoded
from .torch_free import answers

pytestmark = pytest.mark.slow

SIDE = 128
"""Of images, in pixels, so that a pass is short."""
CARD: dict[str, Any] = {"labels": LABELS, "preprocessing": {"resize": SIDE, "crop": None}}
PHOTO = samples()[2]
WRONG = 0.001
"""Share of pixels whose classes rounding may decide."""


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return segmenter("lraspp_mobilenet_v3_large")


@pytest.fixture(scope="module")
def folder(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose card leaves out its task and the background's label."""
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


def classes_of(module: nn.Module, image: Image.Image) -> NDArray[np.int64]:
    """The class of each pixel, as torchvision's users have it."""
    with torch.inference_mode():
        scores = module(SemanticSegmentation(resize_size=SIDE)(image)[None])["out"]
        found: NDArray[np.int64] = interpolate(scores, image.size[::-1], mode="bilinear")[0].argmax(0).numpy()
    assert len(np.unique(found)) > 2, "a test with few classes proves nothing"
    return found


@pytest.fixture(scope="module")
def expected(module: nn.Module) -> NDArray[np.int64]:
    return classes_of(module, Image.open(io.BytesIO(PHOTO)).convert("RGB"))


def check(found: Any, expected: NDArray[np.int64]) -> None:
    assert np.shape(found) == expected.shape
    assert (np.asarray(found) != expected).mean() < WRONG


def test_a_call_in_python_gives_the_classes_of_torchvision_s_model(
    model: Model, expected: NDArray[np.int64]
) -> None:
    found = model(PHOTO)
    check(found.class_map, expected)
    assert model.does == "gives each pixel one of 5 classes"
    assert model.labels == ("__background__", *LABELS)
    several = model.batch([PHOTO, png(noise(1, 70, 120)), PHOTO])
    assert [one.size for one in several] == [found.size, (120, 70), found.size]
    np.testing.assert_array_equal(several[2].class_map, found.class_map)


def test_json_has_the_areas_and_the_masks(service: Service, expected: NDArray[np.int64]) -> None:
    answer = predicted(service, PHOTO)
    SegmentationAnswer.model_validate(answer)
    assert set(answer) == {*SegmentationAnswer.model_fields, "model", "timing"} - {"class_map"}
    assert answer["size"] == list(expected.shape)
    assert sum(one["pixels"] for one in answer["classes"]) == expected.size
    found = np.zeros(expected.shape, int)
    for one in answer["classes"]:
        mask = decoded(one["mask"])
        assert mask.sum() == one["pixels"] == pytest.approx(one["share"] * expected.size)
        found[mask] = one["class_index"]
    check(found, expected)


def test_a_request_chooses_how_the_pixels_come(service: Service, expected: NDArray[np.int64]) -> None:
    assert all("mask" not in one for one in predicted(service, PHOTO, masks="none")["classes"])
    picture = base64.b64decode(predicted(service, PHOTO, masks="png")["class_map"])
    check(Image.open(io.BytesIO(picture)), expected)
    reply = service.client.post("/predict", files={"image": PHOTO}, params={"masks": "jpeg"})
    assert (reply.status_code, reply.json()["error"]) == (400, "`masks` must be `rle`, `png` or `none`")


def test_png_is_the_class_map_with_a_palette_or_drawn_over_the_image(
    service: Service, expected: NDArray[np.int64]
) -> None:
    headers = {"Accept": "image/png"}
    reply = service.client.post("/predict", files={"image": PHOTO}, headers=headers)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    assert reply.headers["x-model-digest"] == service.client.get("/info").json()["digest"]
    picture = Image.open(io.BytesIO(reply.content))
    assert picture.mode == "P"
    check(picture, expected)
    params = {"picture": "overlay"}
    drawn = service.client.post("/predict", files={"image": PHOTO}, headers=headers, params=params)
    overlay, photo = Image.open(io.BytesIO(drawn.content)), Image.open(io.BytesIO(PHOTO)).convert("RGB")
    assert (overlay.mode, overlay.size) == ("RGB", photo.size)
    changed = (np.asarray(overlay) != np.asarray(photo)).any(-1)
    assert changed[expected != 0].mean() > 0.9
    large = png(noise(3, 1000, 2400))
    whole = service.client.post("/predict", files={"image": large}, headers=headers)
    assert Image.open(io.BytesIO(whole.content)).size == (2400, 1000)
    reduced = service.client.post("/predict", files={"image": large}, headers=headers, params=params)
    assert Image.open(io.BytesIO(reduced.content)).size == (2048, 853)
    two = service.client.post("/predict", files=[("images", PHOTO)] * 2, headers=headers)
    assert two.status_code == 400


def test_images_of_other_sizes_are_answered_beside_each_other(service: Service, module: nn.Module) -> None:
    photos = [Image.open(io.BytesIO(PHOTO)).convert("RGB").resize(size) for size in ((64, 48), (300, 200))]
    files = [("images", png(np.asarray(photo))) for photo in photos]
    reply = service.client.post("/predict", files=files, params={"masks": "png"})
    assert reply.status_code == 200, reply.text
    for one, photo in zip(reply.json()["predictions"], photos, strict=True):
        check(Image.open(io.BytesIO(base64.b64decode(one["class_map"]))), classes_of(module, photo))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (30, 6000)])
def test_an_image_too_narrow_for_the_model_costs_the_client_an_error(
    service: Service, size: tuple[int, int]
) -> None:
    reply = service.client.post("/predict", files={"image": png(noise(1, *size))})
    assert reply.status_code == 413, reply.text
    assert "less narrow" in reply.json()["error"]


def test_tensors_over_rest_and_grpc_are_those_of_the_metadata(
    service: Service, expected: NDArray[np.int64]
) -> None:
    reply = inferred(service, [PHOTO] * 2)
    assert reply.status_code == 200, reply.text
    rest = {one["name"]: one for one in reply.json()["outputs"]}
    metadata = service.client.get("/v2/models/net").json()["outputs"]
    assert [(one["name"], one["datatype"], len(one["shape"])) for one in metadata] == [
        (one["name"], one["datatype"], len(one["shape"])) for one in rest.values()
    ]
    for found in np.reshape(rest["class_map"]["data"], rest["class_map"]["shape"]):
        check(found, expected)
    assert np.sum(rest["pixels"]["data"]) == 2 * expected.size

    outputs = inferred_by_grpc(service, [PHOTO])
    first = outputs["class_map"]
    assert list(first.shape) == [1, *expected.shape]
    check(np.reshape(first.contents.uint_contents, first.shape)[0], expected)


def test_class_maps_of_different_sizes_are_no_tensor(service: Service) -> None:
    images = [PHOTO, png(noise(2, 48, 64))]
    reply = inferred(service, images)
    assert reply.status_code == 400
    assert "one request for each size" in reply.json()["error"]
    areas = inferred(service, images, {"name": "pixels"})
    assert areas.json()["outputs"][0]["shape"] == [2, 5]


def test_answers_count_in_the_metrics_by_label_and_by_stage(service: Service) -> None:
    answer = predicted(service, PHOTO)
    label = answer["classes"][0]["label"]
    names = (
        f'pthserve_predictions_total{{label="{label}"}}',
        'pthserve_stage_duration_seconds_count{stage="answer"}',
    )
    before = [service.metric(name) for name in names]
    predicted(service, PHOTO)
    # The answer is computed once, and written once.
    assert [service.metric(name) for name in names] == [before[0] + 1, before[1] + 2]


def test_the_areas_of_classes_add_up_to_the_images(service: Service) -> None:
    shares = {one["label"]: one["share"] for one in predicted(service, PHOTO)["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    names = {label: f'pthserve_class_area_images_total{{label="{label}"}}' for label in shares}
    before = {label: service.metric(name) for label, name in names.items()}
    predicted(service, PHOTO)
    added = {label: service.metric(name) - before[label] for label, name in names.items()}
    assert added == pytest.approx(shares)


def test_what_an_answer_needs_is_bounded_as_decoding_is(model: Model, folder: Path) -> None:
    with serving(model, model=str(folder), deadline=120, decode_memory=2**25) as service:
        assert predicted(service, PHOTO)["classes"]
        large = png(noise(3, 2500, 2500))
        headers = {"Accept": "image/png"}
        reply = service.client.post("/predict", files={"image": large}, headers=headers)
        assert reply.status_code == 413
        assert "decode_memory" in reply.json()["error"]


def test_a_class_map_takes_memory_until_its_client_has_read_it(model: Model, folder: Path) -> None:
    """12 MB, and twice that while it is written, of the 32 MiB that 16 bodies of 2 MiB may take."""
    image = png(np.zeros((3000, 4000, 3), np.uint8))
    whole: dict[str, Any] = {"inference_header_content_length": 0, "accept": "application/octet-stream"}
    request = head(path="/v2/models/net/infer", content_length=len(image), **whole) + image
    with serving(model, model=str(folder), deadline=120, max_body=2**21) as service:
        with connect(service, receive=2**14) as slow:
            slow.sendall(request)
            assert slow.recv(12) == b"HTTP/1.1 200"
            refused = exchange(service, request)
            assert (refused.code, "no memory left" in refused.error) == (503, True)
            assert predicted(service, PHOTO)["classes"], "small answers go on"
        until(lambda: exchange(service, request).code == 200, "memory, once the slow client has left")
    with serving(model, model=str(folder), deadline=120, max_body=2**20) as service:
        refused = exchange(service, request)
        assert (refused.code, "ask for less" in refused.error) == (413, True)


def test_the_schema_describes_classes_and_parameters(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    assert {"masks", "picture"} <= {one["name"] for one in predict["parameters"]}
    assert "image/png" in predict["responses"]["200"]["content"]
    assert "classes" in document["components"]["schemas"]["Answer"]["properties"]


def test_info_says_what_is_served(service: Service) -> None:
    assert service.client.get("/info").json()["task"] == {"name": "segmentation", "classes": 5}


def test_predict_shows_a_table_and_draws(folder: Path, service: Service, tmp_path: Path) -> None:
    here, there = tmp_path / "here.png", tmp_path / "there.png"
    shown = called("predict", folder, folder / "photo.jpg", "--draw", here)
    assert shown.returncode == 0, shown.stderr
    assert any(label in shown.stdout for label in LABELS)
    assert "pixels" in shown.stdout
    remote = called("predict", service.url, folder / "photo.jpg", "--draw", there)
    assert remote.returncode == 0, remote.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(here)), np.asarray(Image.open(there)))
    told = called("predict", folder, folder / "photo.jpg", "--json")
    assert json.loads(told.stdout)[0]["task"] == "segmentation"
    refused = called("predict", folder, folder / "photo.jpg", "--max", "2")
    assert refused.returncode == 2
    assert "for a model that detects objects" in refused.stderr


def test_golden_images_are_recorded_checked_and_disagree_where_pixels_do(folder: Path) -> None:
    recorded = called("golden", folder, folder / "photo.jpg")
    assert recorded.returncode == 0, recorded.stderr
    values = yaml.safe_load((folder / "model.yaml").read_text())
    known = folder / values["golden"][0]["class_map"]
    with load(str(folder), SETTINGS) as model:
        assert apply_golden_policy(model, SETTINGS) == "agreed"
    classes = np.array(Image.open(known))
    classes[: len(classes) // 2] = 4
    Image.fromarray(classes).save(known)
    with load(str(folder), SETTINGS) as model, pytest.raises(GoldenError, match=r"% of the pixels have"):
        apply_golden_policy(model, SETTINGS)
    card(folder, golden=[{"image": "photo.jpg", "class_map": known.name, "agreement": 0.3}])
    with load(str(folder), SETTINGS) as model:
        assert apply_golden_policy(model, SETTINGS) == "agreed"


def test_golden_images_of_several_sizes_are_checked(folder: Path) -> None:
    other = folder / "other.png"
    Image.open(io.BytesIO(PHOTO)).convert("RGB").resize((90, 130)).save(other)
    recorded = called("golden", folder, folder / "photo.jpg", other)
    assert recorded.returncode == 0, recorded.stderr
    checked = called("golden", folder)
    assert checked.returncode == 0, checked.stderr
    assert "All 2 golden images pass" in checked.stdout


def test_a_pack_has_the_same_classes_without_pytorch_and_its_golden_images_are_checked(
    folder: Path, module: nn.Module, tmp_path: Path
) -> None:
    sizes = [(200, 150), (90, 130), (128, 128)]
    images = [tmp_path / f"{width}.png" for width, _ in sizes]
    for size, file in zip(sizes, images, strict=True):
        Image.open(io.BytesIO(PHOTO)).convert("RGB").resize(size).save(file)
    shutil.copy(images[1], folder / "other.png")
    recorded = called("golden", folder, folder / "photo.jpg", folder / "other.png")
    assert recorded.returncode == 0, recorded.stderr
    done = called("pack", folder, "--output", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    task = json.loads((tmp_path / "packed" / "manifest.json").read_text())["task"]
    assert task == {"name": "segmentation", "classes": 5}
    for file, answer in zip(images, answers(tmp_path / "packed", images, golden=2), strict=True):
        found = np.zeros(answer["size"], int)
        for one in answer["classes"]:
            found[decoded(one["mask"])] = one["class_index"]
        check(found, classes_of(module, Image.open(file)))
    known = yaml.safe_load((folder / "model.yaml").read_text())["golden"][0]["class_map"]
    Image.fromarray(np.array(Image.open(folder / known)) * 0 + 4).save(folder / known)
    refused = called("pack", folder, "--output", tmp_path / "wrong")
    assert refused.returncode != 0
    assert "% of the pixels have" in refused.stderr
    assert not (tmp_path / "wrong").exists()


def test_a_service_packs_it_once_and_then_starts_without_pytorch(
    folder: Path,
    expected: NDArray[np.int64],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = SETTINGS.model_copy(update={"cache_dir": tmp_path})
    for words in ("packing", ""):
        caplog.clear()
        with caplog.at_level("INFO", "pthserve"), Loader(str(folder), settings, size=10**9)() as model:
            assert model.forward.name == "openvino"
            check(model(PHOTO).class_map, expected)
            assert {one.crops for one in model.plan.evidence} == {12}
        assert ("packing" in caplog.text) == bool(words)


def test_int8_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    refused = called("pack", folder, "--output", tmp_path / "packed", "--precision", "int8")
    assert refused.returncode == 3
    assert "a segmentation model is not quantised to int8" in refused.stderr
    with pytest.raises(EngineError, match="is not quantised to int8"):
        load(str(folder), SETTINGS.model_copy(update={"precision": "int8"}))


def test_bf16_is_held_to_the_rule(folder: Path) -> None:
    """Of random weights its answers differ by more: the message has the numbers."""
    if "bf16" not in precisions():
        pytest.skip("this CPU does not compute bf16")
    with pytest.raises(EngineError, match=r"openvino bf16: on 12 crops a difference is 0\.\d+ on average"):
        load(str(folder), SETTINGS.model_copy(update={"precision": "bf16"}))
    anything = {"precision": "bf16", "tolerance": 1.0}
    with pytest.raises(EngineError, match=r"openvino bf16: the decision is another on \d+ of 12 crops"):
        load(str(folder), SETTINGS.model_copy(update=anything))


def test_a_card_may_state_another_size_and_no_other_task(folder: Path, expected: NDArray[np.int64]) -> None:
    card(folder, preprocessing={"resize": [96, 96], "crop": [96, 96]})
    with load(str(folder), SETTINGS) as model:
        assert model(PHOTO).class_map.shape == expected.shape
    card(folder, task="detection")
    with pytest.raises(CardError, match="state `task: segmentation`"):
        load(str(folder), SETTINGS)
