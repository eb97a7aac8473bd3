"""A segmentation model's answer on the page: classes over the picture, with opacity, legend and switches."""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Playwright, expect

from pthserve.planning.crops import samples
from pthserve.tasks.base import BACKGROUND
from pthserve.tasks.drawing import palette

from ..http_service import Service
from ..tasks.own_weights import LABELS, predicted, served, written
from ..tasks.test_masks import decoded
from ..zoos.segmenters import segmenter
from .conftest import Open, Visit, opened
from .test_page import canvas

COLOURS = palette(len(LABELS) + 1)
PHOTO: dict[str, Any] = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": samples()[2]}
OPACITY = 0.6
"""Of the classes over the picture, at first."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of a segmentation model with random weights, which resizes images so that a pass is short."""
    folder = tmp_path_factory.mktemp("areas") / "net"
    card = {"labels": LABELS, "preprocessing": {"resize": 128, "crop": None}}
    with served(written(folder, segmenter("lraspp_mobilenet_v3_large"), **card)) as service:
        yield service


def class_map(answer: dict[str, Any]) -> NDArray[np.int64]:
    """The class of each pixel of the image."""
    found = np.full(answer["size"], -1)
    for one in answer["classes"]:
        found[decoded(one["mask"])] = one["class_index"]
    assert (found >= 0).all()
    return found


def painted(tab: Visit) -> NDArray[np.uint8]:
    """The pixels over the picture, once they are painted."""
    tab.painted()
    return canvas(tab, "canvas.over")


def test_each_pixel_has_the_colour_of_its_class(visit: Open, service: Service) -> None:
    answer = predicted(service, PHOTO["buffer"])
    classes = class_map(answer)
    tab, card = opened(visit, service, PHOTO)
    drawn = painted(tab)
    assert drawn.shape[:2] == classes.shape
    np.testing.assert_array_equal(drawn[..., 3], np.where(classes == 0, 0, round(OPACITY * 255)))
    wanted = np.array(COLOURS)[classes]
    assert abs(drawn[..., :3].astype(int) - wanted)[classes != 0].max() <= 2  # canvases round
    shares = [f"{one['label']} {100 * one['share']:.1f} %" for one in answer["classes"] if one["class_index"]]
    expect(card.locator("h3")).to_contain_text(f"{len(answer['classes'])} classes")
    expect(tab.page.locator("#said")).to_have_text(
        f"photo.jpg: {len(answer['classes'])} classes, {len(shares)} shown: {', '.join(shares)}"
    )
    tab.look("answer")


def test_the_legend_has_names_colours_and_areas(visit: Open, service: Service) -> None:
    answer = predicted(service, PHOTO["buffer"])
    _, card = opened(visit, service, PHOTO)
    rows = card.locator(".switches label")
    expect(rows).to_have_text([f"{one['label']}{100 * one['share']:.1f} %" for one in answer["classes"]])
    for number, one in enumerate(answer["classes"]):
        expect(rows.nth(number).locator(".swatch")).to_have_css(
            "background-color", f"rgb{COLOURS[one['class_index']]}"
        )
        expect(rows.nth(number).get_by_role("checkbox")).to_be_checked(checked=one["label"] != BACKGROUND)
    assert all(card.get_by_role("checkbox", name=one["label"]).count() == 1 for one in answer["classes"])


def test_a_slider_says_how_opaque_the_classes_are(visit: Open, service: Service) -> None:
    tab, card = opened(visit, service, PHOTO)
    slider = card.get_by_role("slider", name="Opacity")
    for key, opacity in (("End", 1.0), ("Home", 0.0), ("PageUp", 0.1)):
        slider.press(key)
        assert painted(tab)[..., 3].max() == round(opacity * 255)
        expect(slider).to_have_attribute("aria-valuetext", f"{100 * opacity:.0f} %")


def test_classes_are_switched_and_stand_out_by_keyboard(visit: Open, service: Service) -> None:
    answer = predicted(service, PHOTO["buffer"])
    classes = class_map(answer)
    first, second = [one for one in answer["classes"] if one["class_index"]][:2]
    tab, card = opened(visit, service, PHOTO)
    switch = card.get_by_role("checkbox", name=first["label"])
    switch.focus()
    opacity = painted(tab)[..., 3]
    assert (opacity[classes == first["class_index"]] == round(0.9 * 255)).all()
    assert (opacity[classes == second["class_index"]] == round(0.1 * 255)).all()
    tab.look("stands-out")
    tab.page.keyboard.press("Space")
    opacity = painted(tab)[..., 3]
    assert not opacity[classes == first["class_index"]].any()
    assert (opacity[classes == second["class_index"]] == round(OPACITY * 255)).all()
    expect(tab.page.locator("#said")).not_to_contain_text(first["label"])
    expect(tab.page.locator("#said")).to_contain_text(second["label"])
    card.get_by_role("button", name="Show all").press("Enter")
    assert (painted(tab)[..., 3] == round(OPACITY * 255)).all()
    expect(tab.page.locator("#said")).to_contain_text(f"{len(answer['classes'])} classes: ")
    card.get_by_role("button", name="Hide all").press("Enter")
    assert not painted(tab)[..., 3].any()


def test_the_class_under_the_pointer_is_named(visit: Open, service: Service) -> None:
    answer = predicted(service, PHOTO["buffer"])
    classes = class_map(answer)
    tab, card = opened(visit, service, PHOTO)
    picture = card.locator(".crop").bounding_box()
    assert picture
    tag = card.locator(".tag")
    for number, one in enumerate(answer["classes"]):
        inside = classes == one["class_index"]
        for shift in range(-3, 4):  # no pixel at a border, which the screen's pixels may miss
            inside &= (np.roll(classes, shift, 0) == classes) & (np.roll(classes, shift, 1) == classes)
        rows, columns = np.nonzero(inside)
        middle = len(rows) // 2
        tab.page.mouse.move(
            picture["x"] + (columns[middle] + 0.5) / classes.shape[1] * picture["width"],
            picture["y"] + (rows[middle] + 0.5) / classes.shape[0] * picture["height"],
        )
        expect(tag).to_have_text(f"{one['label']} {100 * one['share']:.1f} %")
        expect(card.locator(".switches label").nth(number)).to_have_class(re.compile("under"))
    tab.look("pointed-at")
    tab.page.mouse.move(0, 0)
    expect(tag).to_be_hidden()


def test_on_a_phone_in_the_dark_the_classes_fit_the_picture(
    visit: Open, playwright: Playwright, service: Service
) -> None:
    tab, card = opened(visit, service, PHOTO, **playwright.devices["Pixel 7"], color_scheme="dark")
    for width in (412, 320):
        tab.page.set_viewport_size({"width": width, "height": 800})
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        over, picture = card.locator("canvas.over").bounding_box(), card.locator(".crop").bounding_box()
        assert over
        assert over == pytest.approx(picture, abs=1)
    tab.look("phone")


def test_a_class_map_of_12_megapixels_is_shown_smaller(
    visit: Open, service: Service, record_property: Any
) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(5).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.NEAREST).save(file, "PNG")
    answer = predicted(service, file.getvalue())
    tab = visit(service.url)
    expect(tab.page.locator("#state")).to_have_text("ready")
    tab.page.evaluate(
        """() => {
          window.longest = 0;
          new PerformanceObserver((list) => {
            for (const { duration } of list.getEntries()) window.longest = Math.max(window.longest, duration);
          }).observe({ type: "longtask" });
        }"""
    )
    card = tab.show({"name": "large.png", "mimeType": "image/png", "buffer": file.getvalue()})
    tab.answered()
    expect(card.locator(".crop")).to_have_js_property("width", 1600)
    expect(card.locator("canvas.over")).to_have_js_property("height", 1200)
    # Where the page shows a pixel of the map, it is that pixel, although it shows one of 2.5 in a row.
    classes = class_map(answer)
    tab.painted()
    tab.complaints.append("willReadFrequently")
    row = card.locator("canvas.over").evaluate(
        "(canvas) => Array.from(canvas.getContext('2d').getImageData(0, 600, 1600, 1).data)"
    )
    at = np.floor((np.arange(1600) + 0.5) * 2.5).astype(int)
    wanted = classes[int(600.5 * 2.5), at]
    drawn = np.reshape(row, (-1, 4))
    np.testing.assert_array_equal(drawn[:, 3] > 0, wanted != 0)
    assert abs(drawn[:, :3] - np.array(COLOURS)[wanted])[wanted != 0].max() <= 2
    longest = tab.page.evaluate("window.longest")
    print(f"longest task: {longest:.0f} ms")
    record_property("longest task in ms", longest)


def test_what_only_the_service_reads_is_drawn_by_the_service(visit: Open, service: Service) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(PHOTO["buffer"])).save(file, "TIFF")
    tab, card = opened(
        visit, service, {"name": "photo.tiff", "mimeType": "image/tiff", "buffer": file.getvalue()}
    )
    expect(card.locator(".heated")).to_be_visible()
    classes = predicted(service, file.getvalue())["classes"]
    expect(card.locator(".bars li")).to_have_text(
        [f"{one['label']}{100 * one['share']:.1f} %" for one in classes]
    )
    expect(card.locator(".switches")).to_be_hidden()
    tab.look("tiff")


def test_the_api_s_page_describes_classes(visit: Open, service: Service) -> None:
    tab = visit(service.url, "/docs")
    predict = tab.page.locator("section > details").first
    predict.locator("> summary").press("Enter")
    predict.locator(".answer summary").first.click()
    answer = predict.locator(".answer").first
    for field in ("classes", "share", "mask", "counts", "class_map", "size"):
        expect(answer.locator("dt code").get_by_text(field, exact=True).first).to_be_visible()
    expect(answer.locator("pre").first).to_contain_text('"share": 0.75')
    expect(answer).to_contain_text("image/png")
    tab.look("docs")
