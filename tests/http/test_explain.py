"""`POST /explain`: the heat map of an image, as a picture and as numbers."""

import io
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pthserve.engines.base import Explanation
from pthserve.engines.heat_map import GRID
from pthserve.http.explain import COLOURS, draw
from pthserve.serving.explainer import PERMITS

from ..conftest import serving as serving_process
from ..http_service import serving
from ..serving.squares import BLUE, GREEN, RED, SPEC, Gate, Squares, png, squares
from ..shared import until

JSON = {"accept": "application/json"}
GREY = np.full((20, 30, 3), 128, np.uint8)


def explain(client: httpx.Client, image: bytes, asked: str = "", **options: Any) -> httpx.Response:
    return client.post(f"/explain{asked}", files={"image": image}, **options)


def picture(response: httpx.Response) -> NDArray[np.uint8]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(response.content)))


class Corner(Squares):
    """Squares, with a look at its inside: all speaks for the last class at the top left."""

    def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation:
        return Explanation("insight", np.array([[class_index - 1, 0], [0, 0]], np.float32))


@pytest.mark.parametrize("way", ["multipart", "raw"])
def test_an_image_is_answered_with_a_png_of_the_crop(client: httpx.Client, way: str) -> None:
    response = (
        explain(client, png())
        if way == "multipart"
        else client.post("/explain", content=png(), headers={"content-type": "image/png"})
    )
    assert picture(response).shape == SPEC.image_shape


@pytest.mark.parametrize("accept", ["*/*", "image/png", "image/*", "image/png, application/json;q=0.5", ""])
def test_whoever_does_not_ask_for_json_alone_gets_the_png(client: httpx.Client, accept: str) -> None:
    picture(explain(client, png(), headers={"accept": accept}))


def test_the_numbers_come_to_whoever_accepts_json_and_as_the_schema_says(client: httpx.Client) -> None:
    response = explain(client, png(GREEN), headers=JSON)
    assert response.headers["content-type"] == "application/json"
    said = response.json()
    schema = client.get("/openapi.json").json()
    content = schema["paths"]["/explain"]["post"]["responses"]["200"]["content"]
    assert content.keys() == {"image/png", "application/json"}
    jsonschema.validate(said, {**content["application/json"]["schema"], "components": schema["components"]})
    assert (said["class_index"], said["label"], said["method"]) == (1, "green", "occlusion")
    heat = np.array(said["map"])
    assert heat.min() >= 0
    assert heat.max() == 1


@pytest.mark.parametrize(("index", "label"), list(enumerate(["red", "green", "blue"])))
def test_a_class_can_be_asked_for(client: httpx.Client, index: int, label: str) -> None:
    said = explain(client, png(RED), f"?class={index}", headers=JSON).json()
    assert (said["class_index"], said["label"]) == (index, label)
    assert np.any(said["map"]) == (label == "red"), "nothing in a red square speaks for another class"


@pytest.mark.parametrize("asked", ["3", "999999999", "-1", "1.0", "red", "", "²", "1e0", "9" * 40])
def test_a_class_that_is_none_is_refused(client: httpx.Client, asked: str) -> None:
    response = client.post("/explain", params={"class": asked}, files={"image": png()})
    assert response.status_code == 400
    assert "class" in response.json()["error"]


@pytest.mark.parametrize(
    ("image", "status"), [(b"a text, and no image\n", 415), (png()[:60], 422), (b"x" * 20971521, 413)]
)
def test_what_is_no_image_is_refused_as_by_predict(client: httpx.Client, image: bytes, status: int) -> None:
    refused = explain(client, image)
    assert refused.status_code == status
    assert refused.json() == client.post("/predict", files={"image": image}).json()


def test_a_request_without_an_image_is_refused(client: httpx.Client) -> None:
    assert client.post("/explain").status_code == 400
    assert client.get("/explain").status_code == 405


def test_where_it_is_switched_off_there_is_no_such_route_and_info_says_so() -> None:
    with serving(explain="off") as service:
        assert explain(service.client, png()).status_code == 404
        assert service.client.get("/info").json()["explain"] is False
        assert "/explain" not in service.client.get("/openapi.json").json()["paths"]
        assert service.client.post("/predict", files={"image": png()}).status_code == 200


@pytest.mark.slow
def test_more_at_once_than_may_be_are_turned_away_and_predictions_are_not() -> None:
    gate = Gate()

    class Held(Squares):
        def explain(self, image: NDArray[np.uint8], class_index: int) -> Explanation:
            gate(image)
            return Explanation("insight", np.ones((1, 1), np.float32))

    with serving(squares(Held())) as service:
        assert service.client.get("/info").json()["explain"] is True
        statuses: list[int] = []

        def hold() -> None:
            # A probe below may hold a permit for a moment: then this one is refused, and asks again.
            with httpx.Client(base_url=service.url, timeout=60) as other:
                statuses.append(
                    until(lambda: (answer := explain(other, png(), "?class=0").status_code) != 503 and answer)
                )

        held = [threading.Thread(target=hold) for _ in range(PERMITS)]
        for thread in held:
            thread.start()
        try:
            until(lambda: explain(service.client, b"never read").status_code == 503)
            refused = explain(service.client, png())
            assert "heat maps" in refused.json()["error"]
            assert int(refused.headers["retry-after"]) >= 1
            assert service.metric('pthserve_rejected_total{reason="explain"}') >= 2
            assert service.client.post("/predict", files={"image": png()}).status_code == 200
            assert service.client.get("/readyz").status_code == 200
        finally:
            gate.opened.set()
            for thread in held:
                thread.join()
        assert statuses == [200] * PERMITS
        until(lambda: explain(service.client, png()).status_code == 200)


@pytest.mark.slow
def test_the_deadline_holds_here_too() -> None:
    gate = Gate()
    with serving(squares(engine := Squares())) as service:
        engine.hook = gate
        try:
            response = explain(service.client, png(), headers={"x-request-timeout": "0.5"})
            assert response.status_code == 504
        finally:
            gate.opened.set()


def test_the_picture_is_warm_where_the_map_is() -> None:
    with serving(squares(Corner())) as service:
        drawn = picture(explain(service.client, png(BLUE), "?class=2")).astype(int)
        warm, cold = drawn[:4, :4], drawn[-4:, -4:]
        assert (warm[..., :2].mean((0, 1)) > cold[..., :2].mean((0, 1)) + 100).all()
        np.testing.assert_array_equal(
            drawn[-1, -1], picture(explain(service.client, png(BLUE), "?class=0"))[0, 0]
        )


@pytest.mark.slow
def test_the_picture_has_the_colours_of_the_image_where_the_model_takes_blue_first() -> None:
    pictures = []
    for spec in (SPEC, replace(SPEC, channel_order="bgr")):
        with serving(replace(squares(Corner()), spec=spec)) as service:
            pictures.append(picture(explain(service.client, png(RED), "?class=0")))
    rgb, bgr = pictures
    np.testing.assert_array_equal(rgb, bgr)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_drawn_of_grey_and_of_colour(channels: int) -> None:
    drawn = np.asarray(Image.open(io.BytesIO(draw(GREY[..., :channels], np.zeros((3, 4), np.float32)))))
    assert drawn.shape == GREY.shape
    assert (drawn == drawn[0, 0]).all()
    assert abs(drawn[0, 0].astype(int) - 128).max() < abs(COLOURS[0] - 128).max(), "the image shows through"


def test_a_warmer_place_is_never_drawn_darker() -> None:
    ramp = np.linspace(0, 1, 30, dtype=np.float32)[None]
    drawn = np.asarray(Image.open(io.BytesIO(draw(np.zeros_like(GREY), ramp))).convert("L"))[0].astype(int)
    assert (np.diff(drawn) >= -1).all()
    assert drawn[-1] - drawn[0] > 150


@pytest.mark.slow
def test_a_packed_model_is_explained_without_torch(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing: list[str | Path] = [
        sys.executable,
        "-m",
        "pthserve",
        "pack",
        imagenet,
        "-o",
        tmp_path / "packed",
    ]
    subprocess.run(packing, check=True, capture_output=True, env={**os.environ, "PTHSERVE_TUNE_BUDGET": "0"})
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cat = (imagenet / "golden" / "chelsea.jpg").read_bytes()
    with serving_process(tmp_path / "packed", tmp_path / "log") as url, httpx.Client(base_url=url) as client:
        said = explain(client, cat, headers=JSON).json()
        assert (said["class_index"], said["method"]) == (285, "class activation map")
        assert np.shape(said["map"]) == (7, 7)
        assert picture(explain(client, cat)).shape == (224, 224, 3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_transformer_is_explained_by_occlusion(engine: str) -> None:
    import torch
    from torchvision.models import VisionTransformer

    from pthserve.engines.openvino_engine import OpenVINOEngine
    from pthserve.engines.openvino_graph import convert
    from pthserve.engines.torch_engine import TorchEngine

    torch.manual_seed(0)
    size = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
    }
    module = VisionTransformer(**size, num_classes=3).eval()
    torch.nn.init.normal_(module.heads.head.weight)
    runs: Any = (
        TorchEngine(module, SPEC) if engine == "torch" else OpenVINOEngine(convert(module, SPEC), SPEC)
    )
    with serving(squares(runs)) as service:
        said = explain(service.client, png(RED), "?class=1", headers=JSON).json()
        assert said["method"] == "occlusion"
        assert np.shape(said["map"]) == (GRID, GRID)
        picture(explain(service.client, png(RED)))
