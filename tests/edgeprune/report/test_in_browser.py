"""The page as a browser shows it: from disk, wide and narrow, light and dark, without scripts."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from edgeprune.evaluation.records import thumbnail
from edgeprune.report import render
from tests.support import chromium

# For each text on the page: its contrast (WCAG, 1 to 21) with what lies behind it, and where it is too low.
# Bars are drawn as background images: their colour counts as well as the one below them.
TOO_LOW = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const channels = (text) => (text.match(/rgba?\\([^)]*\\)/g) ?? []).map(numbers);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    const found = [];
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      found.push(...channels(style.backgroundImage));
      const [colour] = channels(style.backgroundColor);
      if (colour && (colour[3] ?? 1) === 1) return [...found, colour];
    }
    return [...found, [255, 255, 255]];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  let count = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const [colour] = channels(element.closest("svg") ? style.fill : style.color);
    const worst = Math.min(...behind(element).map((back) => contrast(colour.slice(0, 3), back.slice(0, 3))));
    count += 1;
    if (worst < 4.5) low.push(`${texts.currentNode.data.trim().slice(0, 40)}: ${worst.toFixed(2)}`);
  }
  return { count, low };
})()
"""
WIDER_THAN_THE_WINDOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
NOT_SHOWN = "[...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
PICTURES = (7, 12, 211)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = chromium.find()
    if program is None:
        pytest.skip(
            f"no Chromium here: none of {', '.join(chromium.NAMES)} on the path, and CHROMIUM not set"
        )
    with chromium.started(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    """The fullest page there is: over budget, every part of it open."""
    folder = tmp_path_factory.mktemp("run")
    made = report({"bytes": {"coreml-ios16": 1_000_000, "litert-web": 70_001}, "top1_drop_points": 0.35})
    (folder / "thumbnails").mkdir()
    for place in PICTURES:
        jpeg = io.BytesIO()
        Image.new("RGB", (96, 96), (place, 120, 40)).save(jpeg, "JPEG")
        (folder / thumbnail(place)).write_bytes(jpeg.getvalue())
    written, _ = render.write_pages(made, folder)
    written.write_text(written.read_text().replace("<details>", "<details open>"))
    return written


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [1280, 390])
def test_the_page_is_readable_everywhere(browser, page, width_px, scheme):
    browser.open(page, width_px, scheme, scripts=False)
    assert browser.evaluate(WIDER_THAN_THE_WINDOW) == 0
    assert browser.evaluate("document.images.length") == 13
    assert browser.evaluate(NOT_SHOWN) == 0
    contrast = browser.evaluate(TOO_LOW)
    assert contrast["count"] > 500
    assert contrast["low"] == []
    assert browser.complaints() == []
    elsewhere = [url for url in browser.requests() if not url.startswith("data:")]
    assert elsewhere == [page.as_uri()]
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(245, 246, 248)", "dark": "rgb(16, 19, 22)"}[scheme]


def test_what_the_checks_look_for_is_found(browser, page):
    """A page that fails in each way, so that none of the checks passes for want of looking."""
    broken = page.with_name("broken.html")
    text = page.read_text().replace("img-src data:", "")
    wide = '<p style="width: 3000px; color: #8a8f96">too wide and too pale</p>'
    broken.write_text(text.replace("</header>", f'{wide}<img src="https://example.invalid/x.png"></header>'))
    browser.open(broken, 390, "light")
    assert browser.evaluate(WIDER_THAN_THE_WINDOW) > 2000
    assert browser.evaluate(NOT_SHOWN) == 14
    assert [line.split(":")[0] for line in browser.evaluate(TOO_LOW)["low"]] == ["too wide and too pale"]
    assert browser.complaints()
