"""What check-data found, as a page, which a real browser shows."""

import functools
import io
import itertools
import re
import shutil

import pytest
from PIL import Image

from lightning_csn.check_page import MOST_ROWS, as_html, pictured
from lightning_csn.data.examine import examine
from lightning_csn.data.samples import Collection, Sample


@functools.cache
def jpeg(shade):
    picture = io.BytesIO()
    Image.new("RGB", (384, 96), (shade, 80, 120)).save(picture, "JPEG")
    return picture.getvalue()


def page_of(report):
    return as_html(report, {path: jpeg(i % 200) for i, path in enumerate(pictured(report))}, when="today")


def test_pictures_are_of_each_class_and_of_problems_that_can_be_seen(make_report):
    report = make_report()
    paths = pictured(report)
    assert "/data/train/003.mp4" in paths  # to train and to validate on
    assert "/data/train/001.mp4" not in paths  # cannot be read
    by_class = {row.path: row.classes[0] for row in report.rows}
    assert {by_class[path] for path in paths} == set(report.classes)
    assert len(paths) == len(set(paths)) <= 3 * 3 + 2


def test_names_do_not_become_part_of_the_page(make_report):
    page = page_of(make_report())
    assert "alert(" not in page.replace("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;&#x27;.mp4", "")
    assert "walk <b>" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_very_many_files_are_left_out_of_the_table_and_that_is_said():
    count = MOST_ROWS + 10
    samples = [Sample(f"{i}.mp4", 0, i) for i in range(count)]
    report = examine(Collection({"train": samples}, ["run"], "test"), {sample.path: None for sample in samples})
    page = as_html(report, {})
    assert page.count("<tr data-kind=") == MOST_ROWS
    assert "10 more rows are left out here" in page


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its chromedriver is installed to show the page in")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


def show(browser, page, *, width=1000, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(page.as_uri())


@pytest.fixture(scope="module")
def page(tmp_path_factory, make_report):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(make_report()), encoding="utf-8")
    return path


def test_the_browser_has_no_complaint_and_shows_every_picture(browser, page):
    show(browser, page)
    assert browser.get_log("browser") == []
    pictures = browser.execute_script(
        "return [...document.images].map(image => [image.complete, image.naturalWidth, image.alt])"
    )
    assert len(pictures) >= 9
    assert all(complete and width == 384 and alt.startswith("Frames of ") for complete, width, alt in pictures)
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))"
        )
        == []
    )


def test_bars_are_as_high_and_as_long_as_what_they_count(browser, page, make_report):
    show(browser, page)
    report = make_report()
    bars = browser.execute_script(
        "return [...document.querySelectorAll('.histogram .bar')].map("
        "bar => [Number(bar.dataset.count), bar.getBoundingClientRect().height])"
    )
    assert [count for count, _ in bars] == [bar.count for bar in report.lengths]
    most, highest = max(bars)
    assert highest > 100
    assert [height / highest for _, height in bars] == pytest.approx([count / most for count, _ in bars], abs=0.01)
    lying = browser.execute_script(
        "return [...document.querySelectorAll('.measure .bar')].map(bar => [Number(bar.dataset.count), "
        "bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width, "
        "bar.closest('.measure').querySelector('.number').textContent])"
    )
    counts = [every for split in zip(*(c.values() for c in report.counts.values()), strict=True) for _, every in split]
    assert [count for count, _, _ in lying[: len(counts)]] == counts
    assert [share for _, share, _ in lying[: len(counts)]] == pytest.approx([n / max(counts) for n in counts], abs=0.01)
    assert all(text.endswith(str(count)) for count, _, text in lying)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1000])
def test_nothing_is_wider_than_the_window_and_text_can_be_told_from_its_ground(browser, page, width, scheme):
    show(browser, page, width=width, scheme=scheme)
    root, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert root <= inner == width
    cut = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert cut == []
    colours = browser.execute_script(
        "return ['body', '.muted', '.level.unsafe', '.level.warning', '.level.note', '.verdict strong'].map("
        "name => getComputedStyle(document.querySelector(name)).color).concat("
        "getComputedStyle(document.body).backgroundColor)"
    )
    *texts, ground = [luminance(colour) for colour in colours]
    for text in texts:
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5  # WCAG's AA


def luminance(colour):
    """Of "rgb(1, 2, 3)", as WCAG 2 counts it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_has_headings_in_order_and_names_for_what_can_be_used(browser, page):
    show(browser, page)
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert browser.title == "Videos of data"
    assert browser.execute_script("return [...document.querySelectorAll('select,input')].every(e => e.labels.length)")


def test_the_table_of_files_is_filtered_and_sorted(browser, page):
    show(browser, page)

    def column(number):
        return browser.execute_script(
            "return [...document.querySelectorAll('#files tbody tr')].filter(row => row.offsetHeight)"
            f".map(row => row.cells[{number}].textContent)"
        )

    kinds = column(1)
    assert len(set(kinds)) > 3
    assert browser.find_element("id", "matches").text == f"{len(kinds)} of {len(kinds)}"
    browser.find_element("id", "words").send_keys("IS EMPTY")
    assert column(2) == ["train/001.mp4"]
    browser.find_element("id", "words").clear()
    browser.find_element("css selector", "#kind option:nth-child(2)").click()
    assert set(column(1)) == {kinds[0]}
    browser.find_element("css selector", "#kind option").click()
    browser.execute_script("document.getElementById('words').dispatchEvent(new Event('input'))")
    heading = browser.find_element("css selector", "#files thead th:nth-child(3) button")
    heading.click()
    up = column(2)
    assert len(up) == len(kinds)
    heading.click()
    assert column(2) == up[::-1]
    assert browser.execute_script("return document.querySelectorAll('#files th')[2].ariaSort") == "descending"
