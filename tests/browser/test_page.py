"""The page as a person meets it: each thing it is for, done in a real browser."""

import base64
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Playwright, Route, expect

from pthserve.images.preprocess import crop
from pthserve.images.spec import Spec

from ..http_service import Service
from ..serving.squares import BLUE, GREEN, RED, Gate, Squares, png
from ..serving.squares import squares as model
from .conftest import Open, Serve, Visit

SPEC = Spec()
"""Of the demo."""
SEEN = re.compile("^224 . 224 pixels, as the model sees it$")
NONE = "\N{EN DASH}"


@pytest.fixture(scope="module")
def golden(imagenet: Path) -> Path:
    return imagenet / "golden"


def file(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def transfer(page: Page, *paths: Path) -> Any:
    """What a drag or the clipboard holds: the files at `paths`."""
    held = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    return page.evaluate_handle(
        """(held) => {
          const transfer = new DataTransfer();
          for (const [name, data] of held) {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
          }
          return transfer;
        }""",
        held,
    )


def canvas(visit: Visit, selector: str) -> NDArray[np.uint8]:
    """The pixels of a canvas, uint8 (height, width, 4)."""
    visit.complaints.append("willReadFrequently")  # said to whoever reads a canvas, which the page never does
    width, height, data = visit.page.locator(selector).evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return [canvas.width, canvas.height, Array.from(data)];
        }"""
    )
    return np.array(data, np.uint8).reshape(height, width, 4)


def predicted(url: str, image: bytes) -> Any:
    return httpx.post(f"{url}/predict", files={"image": image}).raise_for_status().json()


def test_an_image_that_is_dropped_is_labelled(visit: Open, demo: str, golden: Path) -> None:
    tab = visit(demo)
    page = tab.page
    expect(page.locator("#state")).to_have_text("ready")
    tab.look("start")
    held = transfer(page, golden / "chelsea.jpg")
    page.dispatch_event("main", "dragenter", {"dataTransfer": held})
    expect(page.locator("html")).to_have_class("over")
    tab.look("over")
    page.dispatch_event("main", "drop", {"dataTransfer": held})
    card = tab.answered().first
    expect(page.locator("html")).not_to_have_class("over")

    said = predicted(demo, (golden / "chelsea.jpg").read_bytes())
    expect(card.locator("h3")).to_contain_text("Egyptian cat")
    expect(card.locator(".bars button span:first-child")).to_have_text([one["label"] for one in said["top"]])
    shares = [f"{100 * one['probability']:.1f} %" for one in said["top"]]
    expect(card.locator(".bars button span:last-child")).to_have_text(shares)
    values = card.locator("progress").evaluate_all("(bars) => bars.map((bar) => bar.value)")
    np.testing.assert_allclose(values, [one["probability"] for one in said["top"]], atol=1e-5)
    expect(card.locator(".timing")).to_contain_text(
        re.compile(r"decode [\d.]+ ms.*queue [\d.]+ ms.*infer [\d.]+ ms.*[\d.]+ ms round trip")
    )
    expect(page.locator("#said")).to_have_text(re.compile(r"chelsea\.jpg: Egyptian cat, \d"))
    tab.look("answer")


def test_an_image_that_is_pasted_is_labelled(visit: Open, demo: str, golden: Path) -> None:
    tab = visit(demo)
    held = transfer(tab.page, golden / "coffee.jpg")
    tab.page.evaluate(
        "(clipboardData) => dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", held
    )
    expect(tab.answered().locator("h3")).to_contain_text("espresso")


def test_several_are_chosen_and_one_is_put_away(visit: Open, demo: str, golden: Path) -> None:
    tab = visit(demo)
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_role("button", name="Choose images").click()
    assert chooser.value.is_multiple()
    chooser.value.set_files([golden / "coffee.jpg", golden / "chelsea.jpg", golden / "camera.jpg"])
    cards = tab.answered(3)
    expect(cards.locator("h3")).to_contain_text(["espresso", "Egyptian cat", "tripod"])
    tab.look("answers")
    tab.page.get_by_role("button", name="Remove chelsea.jpg").click()
    expect(cards.locator("h3")).to_contain_text(["espresso", "tripod"])
    expect(tab.page.get_by_role("button", name="Remove camera.jpg")).to_be_focused()
    tab.show(golden / "rocket.jpg")
    expect(cards.locator("h3")).to_contain_text(["missile", "espresso", "tripod"])


def test_the_crop_is_what_the_model_sees(visit: Open, demo: str, golden: Path) -> None:
    tab = visit(demo)
    expect(tab.page.locator("#state")).to_have_text("ready")
    photo = golden / "chelsea.jpg"
    tab.show(photo)
    tab.answered()
    seen = crop(photo.read_bytes(), SPEC, max_pixels=10**8)
    shown = canvas(tab, ".crop")
    assert shown.shape == (*SPEC.crop, 4)
    assert np.abs(shown[..., :3].astype(int) - seen).mean() < 3
    expect(tab.page.locator("figcaption")).to_have_text(SEEN)


def test_a_photo_that_lies_on_its_side_is_shown_as_the_model_sees_it(
    visit: Open, demo: str, golden: Path, tmp_path: Path
) -> None:
    photo = Image.open(golden / "chelsea.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF's orientation: to be turned by a quarter
    photo.save(tmp_path / "turned.jpg", exif=turned, quality=95)
    seen = crop((tmp_path / "turned.jpg").read_bytes(), SPEC, max_pixels=10**8)
    tab = visit(demo)
    expect(tab.page.locator("#state")).to_have_text("ready")
    tab.show(tmp_path / "turned.jpg")
    tab.answered()
    assert np.abs(canvas(tab, ".crop")[..., :3].astype(int) - seen).mean() < 3


def test_a_small_input_is_shown_in_its_pixels(visit: Open, served_digits: str, digits: Path) -> None:
    tab = visit(served_digits)
    expect(tab.page.locator("#state")).to_have_text("ready")
    card = tab.show(digits / "golden" / "7.png")
    tab.answered()
    expect(card.locator("h3")).to_contain_text("7")
    assert canvas(tab, ".crop").shape == (64, 64, 4)
    assert card.locator(".crop").evaluate("(crop) => getComputedStyle(crop).imageRendering") == "pixelated"
    card.get_by_role("button", name="Show why").click()
    card.locator(".heat").wait_for()
    tab.look("heat")


def test_the_heat_map_lies_over_the_crop_as_much_as_the_slider_says(
    visit: Open, demo: str, golden: Path
) -> None:
    tab = visit(demo)
    card = tab.show(golden / "chelsea.jpg")
    tab.answered()
    card.get_by_role("button", name="Show why").click()
    heat = card.locator(".heat")
    expect(heat).to_be_visible()
    expect(heat).to_have_attribute("aria-label", "what spoke for Egyptian cat, by class activation map")
    expect(card.get_by_role("button", name="Egyptian cat")).to_have_attribute("aria-pressed", "true")
    tab.look("heat")

    explained = httpx.post(
        f"{demo}/explain?class=285",
        files={"image": (golden / "chelsea.jpg").read_bytes()},
        headers={"accept": "application/json"},
    ).json()
    values = np.array(explained["map"])
    row, column = np.unravel_index(values.argmax(), values.shape)
    across, down = ((np.array([column, row]) + 0.5) * 224 / np.array(values.shape[::-1])).astype(int)
    drawn = canvas(tab, ".heat")
    assert drawn.shape == (224, 224, 4)
    np.testing.assert_allclose(drawn[down, across], [253, 231, 37, 255], atol=25)
    assert drawn[..., 3].min() < 200, "the image shows through where it is cold"

    slider = card.get_by_role("slider")
    for key, opacity in (("End", "1"), ("Home", "0"), ("PageUp", "0.1"), ("ArrowLeft", "0.09")):
        slider.press(key)
        expect(heat).to_have_css("opacity", opacity)
    box = slider.bounding_box()
    assert box
    tab.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert 0.4 < float(heat.evaluate("(heat) => getComputedStyle(heat).opacity")) < 0.6

    card.get_by_role("button", name="tabby").click()
    expect(heat).to_have_attribute("aria-label", "what spoke for tabby, by class activation map")
    expect(card.locator("[aria-pressed=true]")).to_have_text([re.compile("tabby"), "Hide the heat map"])
    assert not np.array_equal(canvas(tab, ".heat"), drawn)
    assert tab.asked[-1].endswith("/explain?class=281") or f"{demo}/explain?class=281" in tab.asked
    card.get_by_role("button", name="Hide the heat map").click()
    expect(heat).to_be_hidden()
    expect(card.locator("figcaption")).to_have_text(SEEN)


def test_where_explaining_is_off_nobody_is_offered_it(visit: Open, serve: Serve) -> None:
    service = serve(explain="off")
    tab = visit(service.url)
    expect(tab.page.locator("#state")).to_have_text("ready")
    card = tab.show(file("red.png", png(RED)))
    tab.answered()
    expect(card.get_by_role("button", name="Show why")).to_be_hidden()
    expect(card.locator(".bars button").first).to_be_disabled()
    tab.look("off")


def test_a_text_is_told_to_be_no_image(visit: Open, demo: str) -> None:
    tab = visit(demo)
    tab.complaints = ["status of 415"]
    card = tab.show(file("notes.txt", b"milk, eggs\n", "text/plain"))
    tab.answered()
    expect(card.get_by_role("alert")).to_have_text(
        "The data is not a supported image; send one of JPEG, PNG, WebP, BMP, GIF, TIFF."
    )
    expect(card.locator("h3")).to_have_text("No answer")
    expect(card.locator("figure")).to_be_hidden()
    expect(card.get_by_role("button", name="Try again")).to_be_hidden()
    tab.look("text")


def test_an_image_that_is_cut_short_is_told_to_be_broken(visit: Open, demo: str, golden: Path) -> None:
    tab = visit(demo)
    tab.complaints = ["status of 422"]
    card = tab.show(file("half.jpg", (golden / "chelsea.jpg").read_bytes()[:9000], "image/jpeg"))
    tab.answered()
    expect(card.get_by_role("alert")).to_contain_text("The JPEG image is broken")


def test_what_only_the_browser_reads_is_sent_as_a_jpeg(
    visit: Open, demo: str, golden: Path, tmp_path: Path
) -> None:
    Image.open(golden / "chelsea.jpg").save(tmp_path / "cat.avif", quality=90)
    tab = visit(demo)
    tab.complaints = ["status of 415"]
    card = tab.show(tmp_path / "cat.avif")
    expect(card.locator("h3")).to_contain_text("Egyptian cat")
    expect(card.locator(".file")).to_contain_text("sent as JPEG")
    card.get_by_role("button", name="Show why").click()
    expect(card.locator(".heat")).to_be_visible()


def test_what_only_the_service_reads_is_shown_by_the_service(
    visit: Open, demo: str, golden: Path, tmp_path: Path
) -> None:
    Image.open(golden / "chelsea.jpg").save(tmp_path / "cat.tiff")
    tab = visit(demo)
    card = tab.show(tmp_path / "cat.tiff")
    expect(card.locator("h3")).to_contain_text("Egyptian cat")
    expect(card.locator("figcaption")).to_have_text("this browser cannot show this format")
    card.get_by_role("button", name="Show why").click()
    expect(card.locator(".heated")).to_be_visible()
    assert card.locator(".heated").evaluate("(image) => image.naturalWidth") == 224
    tab.look("tiff")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("name", ["cat.jpg", 'it\'s a "cat" $HOME `x`.jpg'])
def test_the_lines_that_are_copied_say_the_same(
    visit: Open, demo: str, golden: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(golden / "chelsea.jpg", tmp_path / name)
    tab = visit(demo)
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=demo)
    card = tab.show(tmp_path / name)
    tab.answered()
    card.get_by_text("The same from code").click()
    tab.look("code")
    lines = {}
    for language in ("curl", "Python"):
        button = card.get_by_role("button", name=f"Copy {language}")
        button.click()
        expect(card.get_by_role("button", name="Copied")).to_be_visible()
        lines[language] = tab.page.evaluate("navigator.clipboard.readText()")
        assert lines[language] == card.get_by_role("region", name=language).inner_text()
        expect(button).to_be_visible()
    assert "X-API-Key" not in lines["curl"] + lines["Python"]
    by_curl = subprocess.run(
        ["bash", "-c", f"{lines['curl']} --silent"], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(by_curl.stdout)["label"] == "Egyptian cat"
    by_python = subprocess.run(
        [sys.executable, "-c", lines["Python"]], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert by_python.stdout == "Egyptian cat\n"


def test_the_model_card_tells_what_is_served(visit: Open, demo: str) -> None:
    info = httpx.get(f"{demo}/info").json()
    tab = visit(demo)
    expect(tab.page.locator("h1")).to_have_text(info["name"])
    card = tab.page.locator("#card")
    for value in ("architecture", "digest", "precision", "version", "num_classes"):
        expect(card.locator("dd").get_by_text(str(info[value]), exact=True).first).to_be_visible()
    expect(card).to_contain_text({"openvino": "OpenVINO", "torch": "PyTorch"}[info["engine"]])
    expect(card).to_contain_text(f"{info['golden']['images']}, {info['golden']['result']}")
    card.get_by_text("List of classes").click()
    tab.page.get_by_label("Find a class").fill("CAT")
    cats = [label for label in info["labels"] if "cat" in label.lower()]
    expect(card.locator("li")).to_have_text(cats)
    expect(tab.page.locator("#found")).to_have_text(f"{len(cats)} of 1000")
    tab.look("classes")


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(visit: Open, serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("swordfish\n")
    service = serve(api_keys=keys)
    tab = visit(service.url)
    page = tab.page
    tab.complaints = ["status of 401"]
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    expect(page.locator("#state")).to_have_text("waits for an API key")
    tab.look("asked")
    card = tab.show(file("red.png", png(RED)))
    tab.answered()
    expect(card.locator("h3")).to_have_text("No answer without a key")

    key.fill("herring")
    key.press("Enter")
    expect(page.locator("#key-error")).to_contain_text("none of this service's keys")
    tab.look("wrong")
    key.fill("swordfish")
    page.get_by_role("button", name="Use the key").click()
    expect(page.locator("#state")).to_have_text("ready")
    expect(key).to_be_hidden()
    expect(card.locator("h3")).to_contain_text("red")  # it is asked again by itself
    card.get_by_role("button", name="Show why").click()
    expect(card.locator(".heat")).to_be_visible()
    card.get_by_text("The same from code").click()
    for language in ("curl", "Python"):
        line = card.get_by_role("region", name=language)
        expect(line).to_contain_text("X-API-Key")
        expect(line).not_to_contain_text("swordfish")
    tab.look("let-in")

    assert page.evaluate("Object.entries(sessionStorage)") == [["api-key", "swordfish"]]
    assert page.evaluate("Object.entries(localStorage)") == []
    assert page.context.cookies() == []
    assert not any("swordfish" in url for url in tab.asked)
    assert "swordfish" not in page.content()
    page.reload()
    expect(page.locator("#state")).to_have_text("ready")
    with page.context.expect_page() as another:  # a tab that is opened by hand has a storage of its own
        page.evaluate("open(location.href, '_blank', 'noopener')")
    expect(another.value.get_by_label("API key")).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_is_the_system_s_until_another_is_chosen(
    visit: Open, demo: str, golden: Path, system: str
) -> None:
    tab = visit(demo, color_scheme=system)
    page, other = tab.page, {"light": "dark", "dark": "light"}[system]

    def theme() -> str:
        ground = page.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")
        return "dark" if max(map(int, re.findall(r"\d+", ground)[:3])) < 64 else "light"

    button = page.get_by_role("button", name="Dark theme")
    assert theme() == system
    expect(button).to_have_attribute("aria-pressed", str(system == "dark").lower())
    tab.complaints = ["status of 415"]
    tab.show(golden / "coffee.jpg", file("notes.txt", b"milk", "text/plain")).get_by_role(
        "button", name="Show why"
    ).click()
    tab.answered(2)
    page.get_by_text("The same from code").first.click()
    tab.look("system")
    button.click()
    assert theme() == other
    expect(button).to_have_attribute("aria-pressed", str(other == "dark").lower())
    tab.look("chosen")
    page.reload()
    assert theme() == other
    page.emulate_media(color_scheme="dark" if other == "dark" else "light")
    assert theme() == other


def test_on_a_phone_all_is_within_reach(visit: Open, playwright: Playwright, demo: str, golden: Path) -> None:
    tab = visit(demo, **playwright.devices["Pixel 7"])
    page = tab.page
    tab.look("start", whole=False)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").tap()
    expect(page.locator("#camera")).to_have_attribute("capture", "environment")
    chooser.value.set_files(golden / "rocket.jpg")
    card = tab.answered().first
    card.get_by_role("button", name="Show why").tap()
    expect(card.locator(".heat")).to_be_visible()
    card.get_by_text("The same from code").tap()
    tab.look("heat")
    for width in (412, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.locator("button:visible, summary:visible, input:visible").evaluate_all(
        """(all) => all.filter((one) => {
          const { width, height } = one.getBoundingClientRect();
          return Math.min(width, height) < (one.type === "range" ? 16 : 28);
        }).map((one) => one.outerHTML)"""
    )
    assert not small
    tab.look("narrow")


def test_it_can_be_used_by_keyboard_alone(visit: Open, demo: str, golden: Path) -> None:
    tab = visit(demo)
    page = tab.page
    expect(page.locator("#state")).to_have_text("ready")

    def focused() -> str:
        name = "({ id, ariaLabel, textContent }) => id || ariaLabel || textContent.trim()"
        return str(page.evaluate(f"({name})(document.activeElement)"))

    def tab_to(wanted: str) -> list[str]:
        """Press Tab until `wanted` has the focus, which is seen wherever it is."""
        passed: list[str] = []
        while focused() != wanted:
            page.keyboard.press("Tab")
            passed.append(focused())
            assert len(passed) < 40, f"{wanted} was not reached: {passed}"
            outline = page.evaluate(
                "(({ outlineStyle, outlineWidth }) => [outlineStyle, outlineWidth])"
                "(getComputedStyle(document.activeElement))"
            )
            assert outline[0] != "none", passed[-1]
            assert outline[1] != "0px", passed[-1]
        return passed

    assert tab_to("Skip to the image picker") == ["Skip to the image picker"]
    tab.look("skip", whole=False)
    page.keyboard.press("Enter")
    assert focused() == "drop"
    assert tab_to("choose") == ["choose"]
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(golden / "chelsea.jpg")
    card = tab.answered().first
    page.locator("#choose").focus()  # the browser gives it back when its own window closes
    tab_to("Show why")
    tab.look("focus", whole=False)
    page.keyboard.press("Space")
    expect(card.locator(".heat")).to_be_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(card.locator(".heat")).to_have_attribute("aria-label", re.compile("Siamese cat"))
    for _ in range(6):
        page.keyboard.press("Shift+Tab")
    assert focused() == "How much of the heat map lies over the image" or "Remove" in focused()
    card.get_by_role("slider").focus()
    page.keyboard.press("Home")
    expect(card.locator(".heat")).to_have_css("opacity", "0")
    tab_to("The same from code")
    page.keyboard.press("Enter")
    expect(card.get_by_role("button", name="Copy curl")).to_be_visible()
    tab_to("Copy Python")
    tab_to("List of classes")
    page.keyboard.press("Enter")
    tab_to("find")
    page.keyboard.type("tabby")
    expect(page.locator("#labels li")).to_have_text(["tabby"])
    tab_to("HTTP API")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_live_panel_shows_the_traffic(visit: Open, serve: Serve) -> None:
    gate = Gate()
    service = serve(model(engine := Squares(), max_batch=4))
    tab = visit(service.url)

    def tile(name: str) -> Any:
        return tab.page.locator("#gauges div").filter(has_text=name).locator("dd span")

    expect(tile("Requests per second")).to_have_text("0.0")
    expect(tile("Latency")).to_have_text(NONE)
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=service.url) as client:
            while not stop.wait(0.05):
                client.post("/predict", files={"image": png(GREEN)})

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        expect(tile("Requests per second")).to_have_text(re.compile(r"^([2-9]|\d\d)\.\d$"))
        expect(tile("Latency")).to_have_text(re.compile(r"^\d+(\.\d)? ms$"))
        expect(tile("Images per batch")).to_have_text("1.0")
        expect(tile("Busy")).to_have_text(re.compile(r"^\d+ %$"))
        line = tab.page.locator("#gauges polyline").first
        expect(line).to_have_attribute("points", re.compile(r"^(\S+,\S+ ?){4,}$"))
        tab.look("traffic")
    finally:
        stop.set()
        asking.join()
    engine.hook = gate
    waiting = [
        threading.Thread(
            target=lambda: httpx.post(f"{service.url}/predict", files={"image": png()}, timeout=60)
        )
        for _ in range(6)
    ]
    for thread in waiting:
        thread.start()
    try:
        expect(tile("In the queue")).to_have_text(re.compile("^[1-6]$"))
    finally:
        gate.opened.set()
        for thread in waiting:
            thread.join()
    expect(tile("In the queue")).to_have_text("0")


def test_the_page_shows_the_load_beside_its_plan(visit: Open, serve: Serve) -> None:
    service = serve(planned_rate=31.13, planned_latency=0.05)
    tab = visit(service.url)
    tile = tab.page.locator("#gauges div").filter(has_text="Requests per second").locator("dd span")
    expect(tile).to_have_text(re.compile(r"^\d+\.\d of 31\.1 planned$"))
    plan = tab.page.locator("#facts dt", has_text="Plan").locator("+ dd")
    expect(plan).to_have_text("up to 31.1 requests per second, 99 % of them within 50 ms")
    tab.look("plan")


def test_without_metrics_on_this_port_the_live_panel_says_so(visit: Open, serve: Serve) -> None:
    service = serve(metrics_port=0)
    tab = visit(service.url)
    tab.complaints = ["status of 404"]
    expect(tab.page.locator("#live-note")).to_have_text("The metrics are on a port of their own.")
    expect(tab.page.locator("#gauges")).to_be_hidden()
    tab.look("elsewhere")


def test_while_the_model_loads_the_page_waits_with_whoever_came(visit: Open, serve: Serve) -> None:
    gate = Gate()
    service = serve(lambda: (gate(None), model())[1])
    try:
        tab = visit(service.url)
        tab.complaints = ["status of 503"]
        expect(tab.page.locator("#state")).to_contain_text("the model is loading")
        card = tab.show(file("blue.png", png(BLUE)))
        expect(card.locator("h3")).to_have_text("Waiting for the service")
        tab.look("loading")
    finally:
        gate.opened.set()
    expect(card.locator("h3")).to_contain_text("blue")
    expect(tab.page.locator("#state")).to_have_text("ready")


def test_a_service_that_is_gone_is_told_of_and_asked_again(visit: Open, squares: Service) -> None:
    tab = visit(squares.url)
    expect(tab.page.locator("#state")).to_have_text("ready")
    tab.complaints = ["ERR_FAILED"]

    def gone(route: Route) -> None:
        route.abort()

    tab.page.route("**/predict*", gone)
    card = tab.show(file("blue.png", png(BLUE)))
    tab.answered()
    expect(card.get_by_role("alert")).to_contain_text("The service cannot be reached")
    tab.look("gone")
    tab.page.unroute("**/predict*", gone)
    card.get_by_role("button", name="Try again").click()
    expect(card.locator("h3")).to_contain_text("blue")
    expect(card.get_by_role("alert")).to_be_hidden()


def test_a_heat_map_that_is_refused_can_be_asked_for_again(visit: Open, squares: Service) -> None:
    tab = visit(squares.url)
    tab.complaints = ["status of 503"]
    expect(tab.page.locator("#state")).to_have_text("ready")
    tab.page.route(
        "**/explain*",
        lambda route: route.fulfill(status=503, json={"error": "2 heat maps are being made"}),
        times=1,
    )
    card = tab.show(file("blue.png", png(BLUE)))
    tab.answered()
    card.get_by_role("button", name="Show why").click()
    expect(card.get_by_role("alert")).to_have_text("2 heat maps are being made.")
    card.get_by_role("button", name="Show why").click()
    expect(card.locator(".heat")).to_be_visible()
    expect(card.get_by_role("alert")).to_be_hidden()


def test_names_and_labels_are_never_taken_for_markup(visit: Open, serve: Serve) -> None:
    nasty = "<img src=x onerror=document.title='broken'>"
    service = serve(model(labels=(nasty, "green", "blue"), name=nasty))
    tab = visit(service.url)
    expect(tab.page.locator("h1")).to_have_text(nasty)
    card = tab.show(file(f"{nasty}.png", png(RED)))
    tab.answered()
    card.get_by_role("button", name="Show why").click()
    expect(card.locator(".heat")).to_be_visible()
    expect(card.locator(".file")).to_contain_text(nasty)
    expect(card.locator("h3")).to_contain_text(nasty)
    assert tab.page.locator("img[src=x]").count() == 0
    assert tab.page.title() != "broken"
    tab.look("nasty")


def test_a_model_that_is_replaced_is_introduced_anew(visit: Open, squares: Service) -> None:
    tab = visit(squares.url)
    expect(tab.page.locator("#facts .digest")).to_have_text("00" * 32)
    tab.page.route("**/info", lambda route: route.fulfill(json={**route.fetch().json(), "digest": "11" * 32}))
    tab.page.route(
        "**/predict*",
        lambda route: route.fulfill(
            json={**(said := route.fetch().json()), "model": {**said["model"], "digest": "11" * 32}}
        ),
    )
    tab.show(file("red.png", png(RED)))
    expect(tab.page.locator("#facts .digest")).to_have_text("11" * 32)


def test_the_page_is_light_and_soon_there(visit: Open, demo: str, record_property: Any) -> None:
    tab = visit(demo)
    expect(tab.page.locator("#state")).to_have_text("ready")
    files = tab.page.evaluate(
        """performance.getEntries().filter((one) => "transferSize" in one && !/info|metrics/.test(one.name))
          .map(({ name, transferSize, decodedBodySize }) => [name, transferSize, decodedBodySize])"""
    )
    start = tab.page.evaluate("performance.getEntriesByType('navigation')[0].toJSON()")
    told = {
        "files": len(files),
        "bytes": sum(size for _, _, size in files),
        "bytes over the wire": sum(size for _, size, _ in files),
        "loaded after ms": round(start["loadEventEnd"]),
    }
    print(told)
    record_property("page", told)
    assert told["bytes"] < 60_000
    assert told["bytes over the wire"] < 25_000


def test_the_api_s_page_lists_the_routes(visit: Open, squares: Service) -> None:
    tab = visit(squares.url)
    tab.page.get_by_role("link", name="HTTP API").click()
    routes = tab.page.locator("section > details > summary")
    paths = httpx.get(f"{squares.url}/openapi.json").json()["paths"]
    expect(routes).to_have_count(sum(map(len, paths.values())))
    for path in paths:
        expect(routes.locator("code").get_by_text(path, exact=True).first).to_be_visible()
    tab.look("routes")
    predict = tab.page.locator("section > details").first
    predict.locator("> summary").press("Enter")
    predict.locator(".answer summary").first.click()
    expect(predict).to_contain_text("probabilities")
    expect(predict.locator("pre").first).to_contain_text('"label": "red"')
    tab.look("predict")
    tab.page.get_by_role("link", name="Show the model an image").click()
    expect(tab.page.locator("#state")).to_have_text("ready")
