"""The report as its reader uses it, in headless Chromium: nothing leaves the page, and every control does what it says."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from report_run import full_run, grey_of, loss_at

from hdit_cli.engine.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "<script>alert(1)<!--"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(
        find_spec("playwright") is None, reason="the package playwright is not installed (pip install playwright)"
    ),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of one run, one of two whose names and classes are an attack, and one of a run with nothing in it."""
    root = tmp_path_factory.mktemp("page")
    one = full_run(root / "one")
    other = full_run(root / HOSTILE, steps=500, shift=0.5, optimizer__lr=1e-3)
    line = {"step": 400, "weights": HOSTILE, "n": 9, "scores": {HOSTILE: 1.0}, "sampling": {"label": HOSTILE}}
    with open(other / "scores.jsonl", "a") as handle:
        handle.write(json.dumps(line) + "\n")
    (root / "empty" / "samples").mkdir(parents=True)
    runs = {"one": [one], "two": [one, other], "empty": [root / "empty"]}
    return {name: write_report(of, out=root / f"{name}.html", force=False).path for name, of in runs.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, pages):
    """Opens a page in a new context; afterwards nothing may have been asked of the network, and nothing complained."""
    contexts, said, asked = [], [], []

    def open_page(name, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        page.wait_for_function("document.querySelector('footer') !== null")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def chart(page, title="Training loss"):
    return page.locator(f'[data-chart="{title}"]')


def ticks(page, title="Training loss", axis="xtick"):
    """Labels of an axis, as numbers."""
    texts = chart(page, title).locator(f".{axis}").all_text_contents()
    return [float(text.replace("k", "e3").replace("M", "e6")) for text in texts]


def read_at(page, part, title="Training loss"):
    """Points at a place of a chart, 0 left to 1 right; gives the tooltip's text."""
    plot = chart(page, title).locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2)
    return chart(page, title).locator(".tip").inner_text()


def drag(page, start, end, title="Training loss"):
    plot = chart(page, title).locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * start, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (start + end) / 2, y)
    page.mouse.move(box["x"] + box["width"] * end, y)
    page.mouse.up()


def told_step(text):
    return int(re.search(r"step ([\d,]+)", text)[1].replace(",", ""))


def test_pointing_reads_what_was_logged(show):
    page = show("one")
    for part in (0.2, 0.5, 0.9):
        text = read_at(page, part)
        step = told_step(text)
        assert abs(step - (10 + 590 * part)) < 60
        assert float(re.search(r"one\s+([\d.]+)", text)[1]) == pytest.approx(loss_at(step), rel=1e-3)


def test_pointing_reads_all_runs(show):
    text = read_at(show("two"), 0.5)
    step = told_step(text)
    values = [float(number) for number in re.findall(r"^([\d.]+)$", text, re.MULTILINE)]
    assert values[:2] == pytest.approx([loss_at(step), loss_at(step) + 0.5], rel=1e-3)


def test_drag_zooms_all_curves_and_double_click_shows_all(show):
    page = show("one")
    before, other = ticks(page), ticks(page, "Gradient norm")
    drag(page, 0.4, 0.6)
    zoomed = ticks(page)
    assert min(zoomed) > 200 and max(zoomed) < 400
    assert min(ticks(page, "Gradient norm")) > 200
    chart(page).locator(".plot").dblclick()
    assert ticks(page) == before and ticks(page, "Gradient norm") == other
    drag(page, 0.3, 0.5, "Validation loss by noise level, newest")  # an axis of its own
    assert ticks(page) == before


def test_keys_do_what_the_pointer_does(show):
    page = show("one")
    before = ticks(page)
    chart(page).locator(".plot").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    tip = chart(page).locator(".tip").inner_text()
    assert told_step(tip) == 30 and str(loss_at(30))[:5] in tip
    assert "step 30" in chart(page).locator("[aria-live]").text_content()
    page.keyboard.press("+")
    assert max(ticks(page)) < max(before)
    page.keyboard.press("0")
    assert ticks(page) == before


def test_toggles(show):
    page = show("two")
    page.locator('input[name="x"][value="images"]').check()
    assert 4000 < max(ticks(page)) <= 8 * 600 and "images seen" in chart(page).text_content()
    page.locator('input[name="x"][value="hours"]').check()
    assert max(ticks(page)) <= 0.15
    linear = ticks(page, axis="ytick")
    page.locator("#log-loss").check()
    assert ticks(page, axis="ytick") != linear
    lines = chart(page).locator(".line:not(.raw)")
    assert lines.count() == 4  # two curves, and their two keys in the legend
    page.locator(".runs button").nth(1).click()
    assert chart(page).locator("svg[role=img] .line:not(.raw)").count() == 1
    assert page.locator(".runs button").nth(1).get_attribute("aria-pressed") == "false"
    assert chart(page, "Gradient norm").locator("svg[role=img] .line:not(.raw)").count() == 1


def test_smoothing_smooths(show):
    page = show("one")
    curve = chart(page).locator("svg[role=img] .line:not(.raw)")
    before = curve.get_attribute("d")
    page.locator("#smoothing").fill("0")
    assert chart(page).locator(".line.raw").count() == 0
    assert curve.get_attribute("d") != before
    assert "smoothed" not in read_at(page, 0.5)


def test_the_slider_changes_the_picture(show):
    page = show("one")
    grey = """() => [...document.querySelectorAll('.grids img')].map((image) => {
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 1;
        const brush = canvas.getContext('2d');
        brush.drawImage(image, 0, 0, 1, 1);
        return brush.getImageData(0, 0, 1, 1).data[0];
    })"""
    for index, step in ((6, 600), (0, 0), (3, 300)):
        page.locator("#grid-step").fill(str(index))
        assert page.locator(".grids figure").get_attribute("data-step") == str(step)
        assert page.evaluate(grey) == pytest.approx([grey_of(step, "ema"), grey_of(step, "raw")], abs=4)
    page.locator('input[value="raw"]').check()
    assert page.evaluate(grey) == pytest.approx([grey_of(300, "raw")], abs=4)
    page.locator('input[value="wipe"]').check()
    page.get_by_label("Where raw ends").fill("30")
    assert page.locator(".over").evaluate("(image) => image.style.clipPath") == "inset(0px 0px 0px 30%)"


def test_the_overfitting_point_is_marked_and_said(show):
    page = show("one")
    section = page.locator("#validation")
    assert "was lowest at step 300" in section.inner_text()
    assert section.locator(".marktext").text_content() == "lowest, step 300"


def test_names_stay_text(show):
    page = show("two")
    assert page.locator("article h2").nth(1).inner_text().startswith(HOSTILE)
    assert page.locator("script").count() == 2
    assert HOSTILE.lower() in page.locator("#scores table").inner_text().lower()
    assert [row.split("\t") for row in page.locator("#recipe .scroll").first.inner_text().splitlines()[1:]] == [
        ["optimizer.lr", "0.002", "0.001"]
    ]


def test_an_empty_run_says_what_is_not_there(show):
    text = show("empty").locator("body").inner_text()
    said = ("nothing trained yet", "No loss was logged yet", "No sample grids yet", "No scores yet", "no recipe.toml")
    for words in said:
        assert words in text


@pytest.mark.parametrize(("name", "scheme"), [("one", "light"), ("two", "dark"), ("empty", "light")])
def test_a_phone_needs_no_sideways_scrolling(show, name, scheme):
    page = show(name, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, color_scheme=scheme)
    page.wait_for_timeout(100)  # the curves take the width they find
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if name != "empty":
        assert page.locator("svg[role=img]").first.bounding_box()["width"] > 250
        chart(page).locator(".plot").tap()
        assert "step" in chart(page).locator(".tip").inner_text()


def test_it_prints(show, tmp_path):
    page = show("two")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator(".toolbar").is_visible() and not page.locator("#grid-step").is_visible()
    assert page.locator(".paper img").count() == 4 and page.locator(".paper img").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    data = page.pdf(format="A4")
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", data))
    assert data.startswith(b"%PDF") and 2 <= pages <= 12


def test_lone_points_are_drawn_and_ticks_differ(show, pages, tmp_path):
    run = full_run(tmp_path / "odd")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line["loss"] = 0.123456 + 1e-6 * (i % 5)
        line["grad_norm"] = 1.0 + i if i % 9 == 4 else None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pages["odd"] = write_report([run], out=tmp_path / "odd.html", force=False).path
    page = show("odd")
    ticks = page.locator("[data-chart='Training loss'] .ytick").all_text_contents()
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)
    assert page.locator("[data-chart='Gradient norm'] circle.dot").count() == sum(i % 9 == 4 for i in range(len(lines)))
