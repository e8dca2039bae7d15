"""The demo in Chromium, with real clicks; `SCREENSHOTS=docs/images` keeps pictures of the page."""

import os
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright (pip install it)")
pytest.importorskip("gradio")
CHROMIUM = "/usr/bin/chromium"
if not os.path.exists(CHROMIUM):
    pytest.skip(f"the browser test needs {CHROMIUM}", allow_module_level=True)

from diffattn.demo import Worker, build_demo, launch  # noqa: E402
from diffattn.demo.head_maps import CAPTION, GAP, SIDE  # noqa: E402

ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
PATIENCE = 900_000 if os.environ.get("SCREENSHOTS") else 60_000  # milliseconds


@pytest.fixture(scope="module")
def worker():
    return Worker(device="cpu")


@pytest.fixture(scope="module")
def url(worker):
    demo = build_demo(worker)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with playwright.sync_playwright() as p:
        context = p.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=CHROMIUM, args=ARGS, viewport=WIDE
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


@pytest.fixture
def open_page(browser, url, worker):
    """Opens the page; at the end nothing must have been asked of another host, and nothing have gone wrong."""
    pages, elsewhere, errors = [], [], []

    def watch(request) -> None:
        if not request.url.startswith((url, "data:", "blob:", "about:")):
            elsewhere.append(request.url)

    def open():
        page = browser.new_page()
        page.on("request", watch)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#generate")
        pages.append(page)
        return page

    yield open
    for page in pages:
        page.close()
    assert not elsewhere and not errors
    assert wait_for(lambda: not worker.busy)


def wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def fill(page, **values) -> None:
    for name, value in values.items():
        field = page.locator(f"#{name} input, #{name} textarea").first
        field.fill(str(value))
        field.press("Tab")


def make_small(page, **values) -> None:
    """Two steps of a small video."""
    page.get_by_text("Model and size").click()
    fill(page, **{"steps": 2, "width": 64, "height": 64, "frames": 5, **values})


def choose(page, method: str) -> None:
    page.locator("#method input").click()
    page.get_by_role("option", name=method).click()


def playing(page, name: str) -> list:
    video = page.locator(f"#{name} video")
    video.wait_for()
    page.wait_for_function("name => document.querySelector(`#${name} video`).currentTime > 0", arg=name)
    return video.evaluate("video => [video.videoWidth, video.paused, video.error]")


def message(page) -> str:
    toast = page.get_by_test_id("toast-body").last
    toast.wait_for()
    return toast.inner_text()


def keep(page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_prompt_becomes_two_videos_that_play_with_numbers_and_a_map(open_page):
    page = open_page()
    fill(page, prompt="a green square moves down over a yellow background")
    choose(page, "pyramid")
    if os.environ.get("SCREENSHOTS"):
        fill(page, steps=10)
        size = 128
    else:
        make_small(page)
        size = 64
    page.locator("#generate").click()
    page.locator(".status.busy .bar").wait_for()
    assert page.locator("#generate").is_disabled()
    page.locator(".status.done").wait_for()
    assert playing(page, "dense") == playing(page, "sparse") == [size, False, None]
    numbers = page.locator("#numbers").inner_text()
    assert "pyramid" in numbers and "PSNR to dense" in numbers and " dB" in numbers and "%" in numbers
    assert page.locator("#map img").evaluate("image => image.naturalWidth") > 300
    assert page.locator("#generate").is_enabled() and page.locator("#cancel").is_disabled() and fits(page)
    table, video = (page.locator(name).bounding_box() for name in ("#numbers table", "#dense"))
    assert table["x"] + table["width"] <= video["x"] + video["width"] + 1
    keep(page, "demo")


def test_heads_are_chosen_by_name_and_by_clicks_on_their_maps(open_page):
    page = open_page()
    if os.environ.get("SCREENSHOTS"):
        fill(page, steps=10)
    else:
        make_small(page, frames=9)
    page.get_by_text("Guidance by heads").click()
    fill(page, head_scale=2)
    page.locator("#generate").click()
    page.locator(".status.done").wait_for()
    plain = page.locator("#dense video").get_attribute("src")
    page.locator("#heads input").click()
    page.get_by_role("option", name="2:1").click()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="By head").click()
    click_on_map(page, 3, 0)
    page.wait_for_function("() => document.querySelector('#heads').innerText.includes('3:0')")
    assert "2:1" in page.locator("#heads").inner_text()
    page.locator("#generate").click()
    page.wait_for_function(
        "was => ![undefined, was].includes(document.querySelector('#dense video')?.getAttribute('src'))", arg=plain
    )
    page.locator(".status.done").wait_for()
    assert page.locator("#head-maps img").is_visible() and fits(page)
    assert page.locator("#head_scale input").input_value() == "2"
    keep(page, "demo-heads")


def click_on_map(page, layer: int, head: int) -> None:
    """A click in the middle of the map of a head."""
    image = page.locator("#head-maps img")
    box, (wide, high) = image.bounding_box(), image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    scale = min(box["width"] / wide, box["height"] / high)
    x, y = GAP + layer * (SIDE + GAP) + SIDE / 2, GAP + head * (CAPTION + SIDE + GAP) + SIDE / 2
    left, top = (box["width"] - scale * wide) / 2, (box["height"] - scale * high) / 2
    image.click(position={"x": left + scale * x, "y": top + scale * y})


def test_a_head_that_is_not_there_is_a_message(open_page):
    page = open_page()
    make_small(page)
    page.get_by_text("Guidance by heads").click()
    page.locator("#heads input").fill("9:0")
    page.keyboard.press("Enter")
    page.locator("#generate").click()
    assert "has layers 0..5" in message(page) and "Traceback" not in page.content()


def test_cancel_stops_the_work(open_page, worker):
    page = open_page()
    fill(page, steps=50)
    page.locator("#generate").click()
    page.get_by_text("Dense: step 1 of 50").wait_for()
    page.locator("#cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    assert wait_for(lambda: not worker.busy, 20)
    assert page.locator("#generate").is_enabled() and page.locator("#cancel").is_disabled()


def test_closing_the_tab_stops_the_work(open_page, worker):
    page = open_page()
    fill(page, steps=50)
    page.locator("#generate").click()
    page.get_by_text("Dense: step 1 of 50").wait_for()
    page.close()
    assert wait_for(lambda: not worker.busy, 20)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"steps": 0}, "Steps must be from 1 to 50, not 0."),
        ({"prompt": ""}, "Type a prompt first."),
        ({"frames": 6}, "frames must be 5 or 9"),
        ({"width": 1000}, "Width must be from 16 to 256, not 1000."),
    ],
)
def test_a_wrong_value_is_a_message(open_page, values, text):
    page = open_page()
    make_small(page, **values)
    page.locator("#generate").click()
    assert text in message(page) and "Traceback" not in page.content()
    page.wait_for_function("() => !document.querySelector('#generate').disabled")
    if "steps" in values:
        keep(page, "demo-message")


def test_two_tabs_at_once_get_their_own_results(open_page):
    first, second = open_page(), open_page()
    for page, seed in ((first, 1), (second, 2)):
        page.bring_to_front()
        make_small(page, seed=seed)
        page.locator("#generate").click()
    found = []
    for page in (first, second):
        page.bring_to_front()
        page.locator(".status.done").wait_for()
        found.append((page.locator("#dense video").get_attribute("src"), page.locator("#numbers").inner_text()))
    assert len(set(found)) == 2 and found[0][0] != found[1][0]


def test_the_page_fits_a_phone(open_page):
    page = open_page()
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    page.get_by_text("Model and size").click()
    assert fits(page)
    keep(page, "demo-phone")
