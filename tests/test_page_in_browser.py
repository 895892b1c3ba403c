"""The page in a browser: it answers as PyTorch does, whatever the visitor draws with and on."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
import torch

import data
import evaluate
from conftest import ROOT
from support.synthetic import STROKES

TINY, PAGE = ROOT / "logs" / "tiny.pt", ROOT / "docs" / "index.html"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium that is driven by selenium; skips where one of the two is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is in requirements-dev.txt")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no Chromium; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


class Page:
    """The page in a browser: what a visitor does and sees."""

    def __init__(self, browser):
        self.browser = browser

    def js(self, script, *values):
        return self.browser.execute_script(script, *values)

    def cdp(self, command, **values):
        return self.browser.execute_cdp_cmd(command, values)

    def shown(self):
        """The equation, the status for screen readers and the bars' texts, after the next frame was drawn."""
        self.browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))")
        return self.js("""return {equation: document.querySelector('.equation').textContent.replace(/\\s/g, ''),
            status: element('status').textContent, note: element('note').textContent,
            tops: ['digit', 'sum'].map(n => [...element(n + '-bars').children].findIndex(c => c.className === 'top')),
            picture: seen.canvas.toDataURL()}""")

    def place(self, x, y):
        """Where on the screen the point (x, y) of the drawing area, from 0 to 1, is."""
        left, top, width, height = self.js(
            "pad.scrollIntoView({block: 'center'}); const b = pad.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]"
        )
        return {"x": left + x * width, "y": top + y * height}

    def draw(self, strokes, touch=False):
        """Draw strokes, lists of (x, y) from 0 to 1, by pointer events as the browser makes them."""
        for stroke in strokes:
            points = [self.place(x, y) for x, y in stroke]
            for i, point in enumerate(points):
                if touch:
                    self.cdp("Input.dispatchTouchEvent", type="touchMove" if i else "touchStart", touchPoints=[point])
                else:
                    kind = "mouseMoved" if i else "mousePressed"
                    self.cdp("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **point)
            if touch:
                self.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            else:
                self.cdp("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **points[-1])

    def click(self, selector):
        from selenium.webdriver.common.by import By

        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def size(self, width, height=800):
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )


@pytest.fixture
def visited(chromium):
    """The page, freshly opened from its file at 1280 pixels; fails on a console message or a request to elsewhere."""
    for kind in ("browser", "performance"):
        chromium.get_log(kind)  # of the test before
    opened = Page(chromium)
    opened.size(1280, 1000)
    chromium.get(PAGE.as_uri())
    yield opened
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert PAGE.as_uri() in asked and all(url == PAGE.as_uri() or url.startswith("data:") for url in asked)


def scaled(digit, size=0.6, left=0.2, top=0.2):
    """A digit's strokes in the drawing area."""
    return [[(left + size * x, top + size * y) for x, y in stroke] for stroke in STROKES[digit]]


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize(("touch", "width", "form"), [(False, 1280, (0.6,)), (True, 360, (0.3, 0.65, 0.05))])
def test_a_drawn_digit_is_read_and_added(visited, digit, touch, width, form):
    visited.size(width)
    addend = (3 * digit + 4) % 10
    visited.click(f"#numbers label:nth-child({addend + 1})")
    visited.draw(scaled(digit, *form), touch)
    shown = visited.shown()
    assert shown["equation"] == f"{digit}+{addend}={digit + addend}"
    assert shown["tops"] == [digit, digit + addend]
    assert f"{digit} plus {addend} is {digit + addend}" in shown["status"] and "disagree" not in shown["note"]


def test_500_test_images_get_pytorchs_answers(visited, mnist_dir):
    images, _, _ = data.load_digits("mnist", mnist_dir, train=False)
    images, addends = images[:500], torch.arange(500) % 10
    net, _ = evaluate.load_model(TINY)
    with torch.inference_mode():
        logits = net(data.prepare(images), addends)
    answers = visited.js(
        """const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
        return arguments[1].map((addend, i) => predict(bytes.subarray(784 * i, 784 * (i + 1)), addend))""",
        base64.b64encode(images.numpy().tobytes()).decode(),
        addends.tolist(),
    )
    for name, wanted in zip(("digit", "sum"), logits, strict=True):
        found = torch.tensor([answer[name] for answer in answers])
        assert (found - wanted.softmax(1)).abs().max() < 1e-4
        assert torch.equal(found.argmax(1), wanted.argmax(1))


@pytest.mark.parametrize("digit", range(10))
def test_the_picture_is_made_as_mnists_were(visited, digit):
    pictures = []
    for form in ((0.6, 0.2, 0.2), (0.25, 0.7, 0.02), (1.0, 0.0, 0.0)):
        pictures.append(np.array(visited.js("return [...toPicture(arguments[0])]", scaled(digit, *form))))
    grey = pictures[0].reshape(28, 28)
    rows, columns = (np.flatnonzero(grey.sum(axis)) for axis in (1, 0))
    heights = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert max(heights) in (20, 21)  # 21 where the box lies between pixels
    for axis in (0, 1):  # MNIST's middle is that between pixels 13 and 14
        assert (grey.sum(1 - axis) @ (np.arange(28) + 0.5)) / grey.sum() == pytest.approx(14, abs=0.06)
    for other in pictures[1:]:  # where and how large it was drawn does not matter
        assert np.abs(other - pictures[0]).max() < 30


def test_nothing_drawn_has_no_answer(visited):
    start = visited.shown()
    for _ in range(2):
        shown = visited.shown()
        assert shown["equation"] == "?+5=?" and shown["tops"] == [-1, -1] and shown["picture"] == start["picture"]
        assert visited.js("return element('clear').disabled")
        visited.draw([[(0.5, 0.5)]])  # a dot is ink, and an answer
        shown = visited.shown()
        assert "?" not in shown["equation"] and shown["picture"] != start["picture"]
        visited.click("#clear")


def test_undo_takes_back_strokes_samples_and_clearing(visited):
    seen = [visited.shown()]
    visited.draw(scaled(7))
    seen.append(visited.shown())
    visited.click("#samples button:nth-child(4)")
    seen.append(visited.shown())
    visited.click("#clear")
    assert visited.shown()["equation"] == "?+5=?"
    for before in reversed(seen):
        visited.click("#undo")
        assert visited.shown() == before
    assert visited.js("return element('undo').disabled")


@pytest.mark.parametrize(("address", "equation"), [("#7+5", "7+5=12"), ("#9+0", "9+0=9"), ("#7+55", "?+5=?")])
def test_an_address_opens_with_a_sample_and_a_number(visited, address, equation):
    visited.browser.get("data:,")
    visited.browser.get(PAGE.as_uri() + address)
    assert visited.shown()["equation"] == equation


def test_another_address_of_the_open_page_is_followed(visited):
    visited.js("location.hash = '#7+5'")
    visited.js("location.hash = '#3+9'")
    assert visited.shown()["equation"] == "3+9=12"


def test_the_marked_number_is_the_one_that_is_added_after_going_back_too(visited):
    visited.js("document.querySelector('input[value=\"8\"]').click()")
    visited.browser.get("data:,")
    visited.browser.back()
    visited.shown()
    assert visited.js("return document.querySelector('input:checked').value") == str(visited.js("return addend"))


def test_it_works_by_keyboard_alone(visited):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys):
        ActionChains(visited.browser).send_keys(*keys).perform()

    def focused():
        return visited.js("return document.activeElement.getAttribute('aria-label') || document.activeElement.id")

    reached = []
    while "Drawn sample of 6" not in reached and len(reached) < 30:
        press(Keys.TAB)
        reached.append(focused())
        if reached[-1] == "":
            press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # the numbers: from 5 to 7
            assert visited.js("return getComputedStyle(document.activeElement.nextSibling).outlineStyle") == "solid"
    press(Keys.ENTER)
    assert visited.shown()["equation"] == "6+7=13"
    ActionChains(visited.browser).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
    assert visited.shown()["equation"] == "?+7=?"


def test_rolling_gives_all_ten_numbers(visited):
    counts = visited.js("""const counts = Array(10).fill(0);
        for (let i = 0; i < 2000; i++) { element('roll').click(); counts[document.querySelector(':checked').value]++; }
        return counts""")
    assert min(counts) > 120  # 200 expected, standard deviation 13
    assert int(visited.shown()["equation"][2]) == visited.js("return addend")


def test_another_size_of_the_window_keeps_the_drawing(visited):
    visited.draw(scaled(3))
    before = visited.shown()
    for width in (360, 320, 859, 860, 900, 1280):
        visited.size(width)
        assert visited.shown() == before
        outside = "[...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        assert visited.js(f"return {outside}.map(e => e.outerHTML)") == []
        assert visited.js("return pad.width === Math.round(pad.clientWidth * devicePixelRatio)")
        assert visited.js(
            "const empty = pad.cloneNode(); return empty.width === pad.width && empty.toDataURL() !== pad.toDataURL()"
        )


@pytest.mark.parametrize("width", [320, 360, 860, 1280])
def test_nothing_moves_while_one_draws(visited, width):
    visited.size(width)
    places = {}
    for action in (
        "change([])",
        "change(SAMPLES[7])",
        # answers that disagree, the widest there are
        "addend = 9; "
        "predict = () => ({digit: Array(10).fill(.1), sum: Array.from({length: 19}, (_, i) => i === 18)}); update()",
    ):
        visited.js(action)
        places[visited.shown()["note"]] = visited.js(
            "return JSON.stringify([pad, seen.canvas].map(e => e.getBoundingClientRect()))"
        )
    assert len(places) == 3 and "Answers disagree; best that agree: 9 + 9 = 18" in places
    assert len(set(places.values())) == 1


@pytest.mark.parametrize(("sum_of_digits", "agreeing"), [({8: 0.9}, "8 + 5 = 13"), ({8: 0.02, 3: 0.019}, "3 + 5 = 8")])
def test_of_answers_that_disagree_the_best_that_agree_are_named(visited, sum_of_digits, agreeing):
    digit, total = [0.01] * 10, [0.001] * 19
    digit[3], digit[8] = 0.5, 0.42
    for each, probability in sum_of_digits.items():
        total[each + 5] = probability
    answers = json.dumps({"digit": digit, "sum": total})
    assert visited.js(f"return mostProbableThatAgree({answers}, 5)") == agreeing


def test_a_second_finger_and_a_button_pressed_while_drawing_do_no_harm(visited):
    a, b = visited.place(0.3, 0.3), visited.place(0.6, 0.6)
    visited.cdp("Input.dispatchTouchEvent", type="touchStart", touchPoints=[a | {"id": 1}])
    visited.cdp("Input.dispatchTouchEvent", type="touchStart", touchPoints=[a | {"id": 1}, b | {"id": 2}])
    assert visited.js("return strokes.length") == 1
    visited.js("element('clear').click()")
    visited.cdp("Input.dispatchTouchEvent", type="touchMove", touchPoints=[b | {"id": 1}, a | {"id": 2}])
    visited.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert visited.shown()["equation"] == "?+5=?"
    visited.draw(scaled(1), touch=True)
    assert visited.shown()["equation"] == "1+5=6"


def test_a_stroke_that_leaves_the_drawing_area_ends_where_it_is_released(visited):
    visited.draw([[(0.5, 0.2), (0.5, 0.8), (0.5, 1.4)]])
    assert visited.js("return [strokes.length, strokes[0].at(-1)[1], drawing]") == [1, 1, None]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(visited, scheme):
    visited.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    visited.draw(scaled(7))
    visited.shown()
    colours = visited.js("""const colour = s => getComputedStyle(document.querySelector(s)).color;
        return [getComputedStyle(document.querySelector('.card')).backgroundColor,
                ...['h1', '#digit', '#sum', '#note', '.bars small, .bars > div'].map(colour)]""")
    light = [luminance(colour) for colour in colours]
    assert (light[0] > 0.5) == (scheme == "light")
    for text in light[1:]:  # WCAG 2.2, 1.4.3
        assert (max(text, light[0]) + 0.05) / (min(text, light[0]) + 0.05) >= 4.5


def luminance(colour):
    """Relative luminance, as WCAG defines it, of a CSS colour "rgb(r, g, b)"."""
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_everything_that_takes_input_has_a_name(visited):
    nameless = visited.js("""return [...document.querySelectorAll('button, input, [role=img], section')].filter(e =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim())).length""")
    assert nameless == 0


def test_an_answer_takes_a_small_part_of_a_frame(visited):
    milliseconds = visited.js("""const times = [];
        for (let i = 0; i < 100; i++) {
            const start = performance.now();
            predict(toPicture(SAMPLES[i % 10]), 5);
            times.push(performance.now() - start);
        }
        return Math.min(...times)""")  # the machine may be busy, the fastest shows what it takes
    assert milliseconds < 10
