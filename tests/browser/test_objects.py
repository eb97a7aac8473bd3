"""A detector's answer on the page: objects over the picture and in a list, with threshold and switches."""

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Playwright, expect

from pthserve.planning.crops import samples
from pthserve.tasks.drawing import colour

from ..http_service import Service
from ..tasks.own_weights import predicted, served, written
from ..tasks.test_masks import decoded
from ..zoos.detectors import detector
from .conftest import Open, opened
from .test_page import canvas

LABELS = ["circle", "square", "<b>star</b>", "moon"]
TIMES = "\N{MULTIPLICATION SIGN}"
LOWEST = 0.05
"""The score from which on the page asks for objects."""
FEW = {"min_size": 96, "max_size": 144, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 20}
"""Arguments with which a pass of an R-CNN is short."""
PHOTO: dict[str, Any] = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": samples()[0]}


def served_detector(folder: Path, name: str, threshold: float, **kwargs: Any) -> Iterator[Service]:
    """A service of torchvision's detector `name`, with random weights."""
    card = {"architecture": name, "kwargs": kwargs, "labels": LABELS, "threshold": threshold}
    with served(written(folder, detector(name, **kwargs), **card)) as service:
        yield service


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An SSDlite, which finds hundreds of objects from the lowest score on."""
    yield from served_detector(tmp_path_factory.mktemp("boxes") / "net", "ssdlite320_mobilenet_v3_large", 0.6)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    yield from served_detector(tmp_path_factory.mktemp("masks") / "net", "maskrcnn_resnet50_fpn", 0.5, **FEW)


@pytest.fixture(scope="module")
def keypoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("keypoints") / "net"
    yield from served_detector(folder, "keypointrcnn_resnet50_fpn", 0.3, **FEW)


def texts(objects: list[dict[str, Any]]) -> list[str]:
    """The lines that show objects."""
    return [
        f"{one['label']}left {left}, top {top}, right {right}, bottom {bottom}{100 * one['score']:.1f} %"
        for one in objects
        for left, top, right, bottom in [[math.floor(side + 0.5) for side in one["box"]]]
    ]


def test_the_objects_from_the_model_s_threshold_on_are_drawn_and_listed(visit: Open, boxes: Service) -> None:
    answer = predicted(boxes, PHOTO["buffer"])
    objects = answer["detections"]
    assert len(objects) > 2, "a test without objects proves nothing"
    tab, card = opened(visit, boxes, PHOTO)
    rows, drawn = card.locator(".bars li:visible"), card.locator("svg.over g:not([hidden])")
    expect(rows).to_have_text(texts(objects))
    expect(drawn).to_have_count(len(objects))
    expect(card.locator("h3")).to_contain_text(f"{len(objects)} objects")
    expect(tab.page.locator("#said")).to_have_text(
        re.compile(rf"^photo\.jpg: {len(objects)} objects: \d+ {TIMES} .+; score of 60\.0 % or more$")
    )
    picture = card.locator(".crop").bounding_box()
    assert picture
    scale = picture["width"] / answer["size"][1], picture["height"] / answer["size"][0]
    assert scale[0] == pytest.approx(scale[1], rel=0.01)
    for number, one in enumerate(objects):
        rect = card.locator(f'svg.over [data-index="{number}"] rect').last
        place = rect.evaluate(
            "(rect) => { const { x, y, width, height } = rect.getBoundingClientRect(); "
            "return [x, y, x + width, y + height]; }"
        )
        left, top, right, bottom = one["box"]
        wanted = (np.array([left, top, right, bottom]) * np.tile(scale, 2)) + np.tile(
            [picture["x"], picture["y"]], 2
        )
        np.testing.assert_allclose(place, wanted, atol=6)  # the lines have a width
        assert rect.get_attribute("stroke") == f"rgb({' '.join(map(str, colour(one['class_index'])))})"
    assert tab.page.locator("article b").count() == 0, "a label was taken for markup"
    tab.look("answer")


def test_pointing_at_a_box_or_its_line_makes_both_stand_out_with_label_and_score(
    visit: Open, boxes: Service
) -> None:
    objects = predicted(boxes, PHOTO["buffer"])["detections"]
    tab, card = opened(visit, boxes, PHOTO)
    tag, rows = card.locator(".tag"), card.locator(".bars button")
    expect(tag).to_be_hidden()
    for number in (1, 0):
        rows.nth(number).hover()
        expect(card.locator("svg.over .chosen")).to_have_attribute("data-index", str(number))
        expect(rows.nth(number)).to_have_class("chosen")
        expect(tag).to_have_text(f"{objects[number]['label']} {100 * objects[number]['score']:.1f} %")
    tab.page.mouse.move(0, 0)
    expect(tag).to_be_hidden()
    expect(card.locator(".chosen")).to_have_count(0)

    smallest = min(
        range(len(objects)),
        key=lambda number: np.prod(np.subtract(objects[number]["box"][2:], objects[number]["box"][:2])),
    )
    rect = card.locator(f'svg.over [data-index="{smallest}"] rect').last
    rect.hover()
    expect(rows.nth(smallest)).to_have_class("chosen")
    expect(rows.nth(smallest)).to_be_in_viewport()
    expect(tag).to_contain_text(f"{100 * objects[smallest]['score']:.1f} %")
    tab.look("pointed-at")
    rect.click()
    tab.page.mouse.move(0, 0)
    expect(rows.nth(smallest)).to_be_focused()
    expect(rows.nth(smallest)).to_have_attribute("aria-pressed", "true")
    expect(tag).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tag).to_be_hidden()
    expect(rows.nth(smallest)).to_have_attribute("aria-pressed", "false")


def test_the_threshold_shows_and_hides_objects_without_asking_again(visit: Open, boxes: Service) -> None:
    everything = predicted(boxes, PHOTO["buffer"], threshold=LOWEST)["detections"]
    tab, card = opened(visit, boxes, PHOTO)
    asked = [url for url in tab.asked if "/predict" in url]
    slider = card.get_by_role("slider", name="Lowest score")
    rows = card.locator(".bars li:visible")
    for key, threshold in (("Home", LOWEST), ("PageUp", None), ("End", 1.0)):
        slider.press(key)
        value = float(slider.input_value()) / 100
        assert threshold is None or value == threshold
        left = [one for one in everything if one["score"] >= value]
        expect(rows).to_have_count(len(left))
        expect(card.locator("svg.over g:not([hidden])")).to_have_count(len(left))
        expect(card.locator("h3")).to_contain_text(f"{len(left)} objects" if left else "No objects")
        expect(tab.page.locator("#said")).to_contain_text(f"score of {100 * value:.1f} % or more")
        expect(slider).to_have_attribute("aria-valuetext", f"{100 * value:.1f} %")
        if key == "Home":
            expect(rows).to_have_text(texts(left))
            tab.look("all")
    tab.look("none")
    assert [url for url in tab.asked if "/predict" in url] == asked


def test_each_class_has_a_switch(visit: Open, boxes: Service) -> None:
    objects = predicted(boxes, PHOTO["buffer"])["detections"]
    tab, card = opened(visit, boxes, PHOTO)
    rows = card.locator(".bars li:visible")
    label = objects[0]["label"]
    others = [one for one in objects if one["label"] != label]
    assert others
    line = card.locator(".switches label").filter(has_text=label)
    expect(line).to_have_text(f"{label}{len(objects) - len(others)}")
    line.get_by_role("checkbox").press("Space")
    expect(rows).to_have_text(texts(others))
    expect(tab.page.locator("#said")).to_contain_text(f"{len(others)} objects")
    expect(tab.page.locator("#said")).not_to_contain_text(f"{TIMES} {label}")
    tab.look("one-off")
    card.get_by_role("button", name="Show all").click()
    expect(rows).to_have_count(len(objects))
    card.get_by_role("button", name="Hide all").click()
    expect(rows).to_have_count(0)
    expect(tab.page.locator("#said")).to_contain_text("No objects")
    swatch = card.locator(".swatch").first
    (found,) = {one["class_index"] for one in objects if one["label"] == label}
    expect(swatch).to_have_css("background-color", f"rgb{colour(found)}")


def test_objects_are_reached_and_walked_through_by_keyboard(visit: Open, boxes: Service) -> None:
    tab, card = opened(visit, boxes, PHOTO)
    rows = card.locator(".bars button:visible")
    count = rows.count()
    card.get_by_role("slider").focus()
    reached = 0
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        reached += rows.evaluate_all("(rows) => rows.includes(document.activeElement)")
    assert reached == 1, "the list is one stop of Tab, however long it is"
    rows.first.focus()
    for key, number in (
        ("ArrowDown", 1),
        ("End", count - 1),
        ("ArrowDown", count - 1),
        ("ArrowUp", count - 2),
        ("Home", 0),
    ):
        tab.page.keyboard.press(key)
        expect(rows.nth(number)).to_be_focused()
        expect(rows.nth(number)).to_have_class("chosen")
        expect(card.locator("svg.over .chosen")).to_have_attribute("data-index", str(number))
    outline = rows.first.evaluate("(row) => getComputedStyle(row).outlineStyle")
    assert outline != "none"
    tab.page.keyboard.press("Enter")
    expect(rows.first).to_have_attribute("aria-pressed", "true")
    name = rows.first.evaluate("(row) => row.innerText")
    assert re.search(r"left \d+, top \d+, right \d+, bottom \d+\s+\d+\.\d %$", name), name


def test_masks_lie_over_their_pixels(visit: Open, masks: Service) -> None:
    answer = predicted(masks, PHOTO["buffer"])
    objects = answer["detections"]
    assert len(objects) > 1
    tab, card = opened(visit, masks, PHOTO)
    tab.painted()
    drawn = canvas(tab, "canvas.over")
    assert list(drawn.shape[:2]) == answer["size"]
    wanted = np.zeros(drawn.shape, np.uint8)
    for one in reversed(objects):
        wanted[decoded(one["mask"])] = (*colour(one["class_index"]), round(0.45 * 255))
    np.testing.assert_array_equal(drawn[..., 3], wanted[..., 3])
    np.testing.assert_allclose(drawn, wanted, atol=2)  # canvases keep colours multiplied by their opacity
    tab.look("masks")
    card.locator(".bars button").nth(1).focus()
    expect(card.locator("svg.over .chosen")).to_have_attribute("data-index", "1")
    tab.painted()
    inside = decoded(objects[1]["mask"])
    assert (canvas(tab, "canvas.over")[..., 3][inside] == round(0.75 * 255)).all()
    tab.look("chosen")


def test_keypoints_are_drawn(visit: Open, keypoints: Service) -> None:
    objects = predicted(keypoints, PHOTO["buffer"])["detections"]
    assert objects
    tab, card = opened(visit, keypoints, PHOTO)
    points = card.locator('svg.over [data-index="0"] path').last.get_attribute("d")
    assert points
    found = [tuple(map(float, one)) for one in re.findall(r"M(\S+) (\S+?)h", points)]
    np.testing.assert_allclose(found, [(one["x"], one["y"]) for one in objects[0]["keypoints"]], atol=1e-3)
    tab.look("keypoints")


def test_on_a_phone_in_the_dark_boxes_fit_the_picture(
    visit: Open, playwright: Playwright, boxes: Service
) -> None:
    tab, card = opened(visit, boxes, PHOTO, **playwright.devices["Pixel 7"], color_scheme="dark")
    for width in (412, 320):
        tab.page.set_viewport_size({"width": width, "height": 800})
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        over, picture = card.locator("svg.over").bounding_box(), card.locator(".crop").bounding_box()
        assert over
        assert picture
        assert over == pytest.approx(picture, abs=1)
    small = card.locator("button:visible, label:has(input[type=checkbox]):visible").evaluate_all(
        "(all) => all.filter((one) => one.getBoundingClientRect().height < 28).map((one) => one.outerHTML)"
    )
    assert not small
    card.locator('svg.over [data-index="0"] rect').last.tap(force=True)
    expect(card.locator(".tag")).to_be_visible()
    tab.look("phone")


def test_a_large_photo_with_hundreds_of_objects_is_shown(
    visit: Open, boxes: Service, record_property: Any
) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(PHOTO["buffer"])).convert("RGB").resize((4000, 3000)).save(file, "JPEG")
    _, card = opened(visit, boxes, {**PHOTO, "buffer": file.getvalue()})
    everything = predicted(boxes, file.getvalue(), threshold=LOWEST)["detections"]
    assert len(everything) > 100
    card.get_by_role("slider").press("Home")
    expect(card.locator(".bars li:visible")).to_have_count(len(everything))
    assert card.locator(".crop").evaluate("({ width, height }) => [width, height]") == [1600, 1200]
    record_property("objects", len(everything))


def test_what_only_the_service_reads_is_drawn_by_the_service(visit: Open, boxes: Service) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(PHOTO["buffer"])).save(file, "TIFF")
    tab, card = opened(
        visit, boxes, {"name": "photo.tiff", "mimeType": "image/tiff", "buffer": file.getvalue()}
    )
    expect(card.locator("figcaption")).to_have_text("this browser cannot show this format")
    expect(card.locator(".heated")).to_be_visible()
    expect(card.locator(".bars li")).to_have_text(texts(predicted(boxes, file.getvalue())["detections"]))
    expect(card.locator(".dial")).to_be_hidden()
    expect(card.locator(".switches")).to_be_hidden()
    tab.look("tiff")


def test_a_picture_without_objects_says_so(visit: Open, boxes: Service) -> None:
    tab = visit(boxes.url)
    expect(tab.page.locator("#state")).to_have_text("ready")
    tab.page.route(
        "**/predict*",
        lambda route: route.fulfill(json={**route.fetch().json(), "detections": []}),
    )
    card = tab.show(PHOTO)
    tab.answered()
    expect(card.locator("h3")).to_have_text("No objects with a score of 60.0 % or more")
    expect(card.locator(".dial")).to_be_hidden()
    expect(card.locator(".switches")).to_be_hidden()
    tab.look("nothing")


def test_the_api_s_page_describes_objects_and_their_keypoints(visit: Open, boxes: Service) -> None:
    tab = visit(boxes.url, "/docs")
    predict = tab.page.locator("section > details").first
    predict.locator("> summary").press("Enter")
    predict.locator(".answer summary").first.click()
    answer = predict.locator(".answer").first
    for field in ("detections", "box", "mask", "counts", "keypoints", "x", "threshold"):
        expect(answer.locator("dt code").get_by_text(field, exact=True).first).to_be_visible()
    expect(answer.locator("pre").first).to_contain_text('"score": 0.98')
    expect(answer).to_contain_text("image/png")
    expect(predict).to_contain_text("default 0.6")
    tab.look("docs")


def test_the_picture_is_shown_as_the_model_gets_it(visit: Open, boxes: Service) -> None:
    photo = Image.open(io.BytesIO(PHOTO["buffer"]))
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF's orientation, which the model does not heed
    file = io.BytesIO()
    photo.save(file, "JPEG", exif=turned, quality=95)
    tab, _ = opened(visit, boxes, {**PHOTO, "buffer": file.getvalue()})
    assert canvas(tab, ".crop").shape[:2] == photo.size[::-1]
