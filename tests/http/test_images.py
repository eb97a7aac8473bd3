"""Images as a form, as JSON and as the body; one, and several in a request."""

import base64
from typing import Any

import httpx
import jsonschema
import pytest

from pthserve.http.images import MAX_IMAGES

from ..http_service import Service, serving
from ..serving.squares import BLUE, GREEN, RED, png
from ..shared import metric

COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def labels(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [prediction["label"] for prediction in response.json()["predictions"]]


def form(*parts: tuple[str, bytes]) -> dict[str, Any]:
    return {"files": [(name, ("a.png", data)) for name, data in parts]}


# --- one image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/octet-stream", "Application/Octet-Stream; a=b", None])
def test_a_body_without_a_type_of_its_own_is_an_image(client: httpx.Client, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type is not None else {}
    response = client.post("/predict", content=png(GREEN), headers=headers)
    assert (response.status_code, response.json()["label"]) == (200, "green")
    assert client.post("/predict", content=b"text", headers=headers).status_code == 415


def test_a_body_without_a_type_and_without_bytes_has_no_image(client: httpx.Client) -> None:
    response = client.post("/predict")
    assert response.status_code == 400
    assert response.json()["error"].startswith(
        "the request contains no image: send it as the multipart field"
    )


def test_what_the_form_of_a_browser_is_called_is_named(client: httpx.Client) -> None:
    response = client.post("/predict", data={"image": "x"})
    assert response.status_code == 400
    assert "its Content-Type is application/x-www-form-urlencoded" in response.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
@pytest.mark.parametrize("label", COLOURS)
def test_base64_in_json_is_answered_as_the_image_itself(
    client: httpx.Client, prefix: str, label: str
) -> None:
    image = png(COLOURS[label])
    response = client.post("/predict?top=1", json={"image": prefix + text(image), "note": "passed over"})
    as_form = client.post("/predict?top=1", files={"image": image})
    assert response.status_code == 200
    assert {**response.json(), "timing": None} == {**as_form.json(), "timing": None}


def test_a_large_image_in_json_is_read(client: httpx.Client) -> None:
    image = png(BLUE) + b"\0" * 2**20  # what follows a PNG's end is ignored
    assert client.post("/predict", json={"image": text(image)}).json()["label"] == "blue"


def test_json_is_read_for_a_heat_map_as_well(client: httpx.Client) -> None:
    accept = {"accept": "application/json"}
    assert client.post("/explain", json={"image": text(png(RED))}, headers=accept).json()["label"] == "red"
    several = client.post("/explain", json={"images": [text(png())] * 2})
    assert (several.status_code, several.json()["error"]) == (
        400,
        "the request has 2 images; send one image per request",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({}, "no image; its JSON has no `image`"),
        ({"image": None}, "no image; its JSON has no `image`"),
        ({"images": []}, "no image; its JSON has no `image`"),
        ({"imgae": "x"}, "no image; its JSON has no `image`"),
        ({"image": "x", "images": ["x"]}, "`image` and `images`"),
        ({"image": 5}, "image: "),
        ({"image": ["x"]}, "image: "),
        ({"images": "x"}, "images: "),
        ({"images": ["x", 5]}, "images.1: "),
        ([], "the JSON: "),
        ("x", "the JSON: "),
        ({"image": ""}, "the image is empty"),
        ({"image": "data:image/png;base64,"}, "the image is empty"),
        ({"image": "é"}, "the image is not valid base64"),
        ({"image": "abc"}, "the image is not valid base64"),
        ({"image": "ab\ncd"}, "the image is not valid base64"),
        ({"images": ["aaaa", "?"]}, "image 2 of 2 is not valid base64"),
        ({"images": ["aaaa", ""]}, "image 2 of 2 is empty"),
        ({"image": "aaaa", "note": "x" * 2000}, "neither an image nor in `data`"),
    ],
)
def test_what_is_wrong_with_json_is_said(client: httpx.Client, json: Any, message: str) -> None:
    response = client.post("/predict", json=json)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_json_that_cannot_be_parsed_is_refused(client: httpx.Client) -> None:
    response = client.post("/predict", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]


def test_an_image_in_json_that_is_not_one_has_the_status_of_any_other(client: httpx.Client) -> None:
    assert client.post("/predict", json={"image": text(b"no image")}).status_code == 415
    assert client.post("/predict", json={"image": text(png()[:60])}).status_code == 422


# --- several ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["image", "images", "json"])
def test_several_images_are_answered_in_their_order(client: httpx.Client, way: str) -> None:
    images = [png(BLUE), png(RED), png(GREEN), png(RED)]
    sent = (
        {"json": {"images": list(map(text, images))}} if way == "json" else form(*((way, i) for i in images))
    )
    response = client.post("/predict?top=2", **sent)
    assert labels(response) == ["blue", "red", "green", "red"]
    single = client.post("/predict?top=2", files={"image": images[0]}).json()
    first = response.json()["predictions"][0]
    assert {**first, "timing": None} == {**single, "timing": None}
    assert first["timing"].keys() == single["timing"].keys()


@pytest.mark.parametrize("sent", [form(("images", png())), {"json": {"images": [text(png())]}}])
def test_a_list_of_one_is_answered_with_a_list(client: httpx.Client, sent: dict[str, Any]) -> None:
    assert labels(client.post("/predict", **sent)) == ["red"]


def test_both_forms_of_an_answer_are_as_the_schema_says(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    content = schema["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]
    form_of = {**content["schema"], "components": schema["components"]}
    jsonschema.validate(client.post("/predict", files={"image": png()}).json(), form_of)
    jsonschema.validate(client.post("/predict", **form(("images", png()))).json(), form_of)


@pytest.mark.parametrize(
    ("broken", "status", "reason"),
    [(b"no image", 415, "the data is not"), (png()[:60], 422, "the PNG image is broken")],
)
@pytest.mark.parametrize("way", ["form", "json"])
def test_which_of_several_images_is_broken_is_said(
    client: httpx.Client, way: str, broken: bytes, status: int, reason: str
) -> None:
    images = [png(), png(), broken, png()]
    sent = (
        {"json": {"images": list(map(text, images))}}
        if way == "json"
        else form(*(("image", i) for i in images))
    )
    response = client.post("/predict", **sent)
    assert response.status_code == status
    assert response.json()["error"].startswith(f"image 3 of 4: {reason}")


def test_names_that_mean_different_answers_are_not_mixed(client: httpx.Client) -> None:
    response = client.post("/predict", **form(("image", png()), ("images", png())))
    assert response.status_code == 400
    assert "`image` and `images`" in response.json()["error"]


def test_more_images_than_a_request_may_have_are_refused(client: httpx.Client) -> None:
    """By either way, before anything is decoded."""
    before = metric(client, 'pthserve_stage_duration_seconds_count{stage="decode"}')
    too_many = [b"x"] * (MAX_IMAGES + 1)
    assert client.post("/predict", **form(*(("image", image) for image in too_many))).status_code == 413
    refused = client.post("/predict", json={"images": list(map(text, too_many))})
    assert refused.status_code == 400
    assert str(MAX_IMAGES) in refused.json()["error"]
    assert metric(client, 'pthserve_stage_duration_seconds_count{stage="decode"}') == before


def test_as_many_images_as_a_request_may_have_are_answered(client: httpx.Client) -> None:
    images = {"images": [text(png(GREEN))] * MAX_IMAGES}
    assert labels(client.post("/predict", json=images)) == ["green"] * MAX_IMAGES


def test_each_image_takes_a_permit() -> None:
    with serving(max_inflight=3) as service:
        assert len(labels(service.client.post("/predict", **form(*[("image", png())] * 3)))) == 3
        refused = service.client.post("/predict", **form(*[("image", png())] * 4))
        assert refused.status_code == 413
        assert "4 images" in refused.json()["error"]


@pytest.mark.slow
def test_base64_is_counted_as_what_it_decodes_to(service: Service) -> None:
    """Of the memory for bodies; it is given back with the answer."""
    for _ in range(40):  # each holds 1.75 MiB of 20 x 16
        body = {"image": text(png() + b"\0" * 2**20)}
        assert service.client.post("/predict", json=body).status_code == 200
