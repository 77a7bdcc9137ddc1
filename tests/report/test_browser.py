"""The page as a browser shows it: on a screen and on a phone, light and dark, and without asking for anything."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import chromium, show, text_of
from ropewalk.report import Origin, write_report

from .conftest import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WIDTHS = {"screen": 1280, "phone": 375}


@pytest.fixture(scope="module")
def page(whole_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(whole_results, config=CONFIG, out=out, origin=Origin("c" * 40, ("experiment=smoke",)))
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", WIDTHS)
def test_the_page_fits_its_screen_and_everything_on_it_can_be_read(
    browser: Any, page: Path, screen: str, dark: bool
) -> None:
    show(browser, page.as_uri(), width=WIDTHS[screen], dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[screen]
    assert "How far can walker read" in text_of(browser)
    figures = browser.execute_script(
        "return [...document.querySelectorAll('.panels svg')].map(e => { const r = e.getBoundingClientRect();"
        " const t = [...e.querySelectorAll('text')], scale = r.width / e.viewBox.baseVal.width;"
        " const smallest = Math.min(...t.map(x => parseFloat(getComputedStyle(x).fontSize) * scale));"
        " return [r.left, r.right, r.height, t.length, smallest] })"
    )
    assert len(figures) == 14
    for left, right, height, texts, smallest in figures:
        assert left >= 0
        assert right <= WIDTHS[screen]
        assert height > 150
        assert texts > 5
        assert smallest >= 7.5, "letters of a figure, in CSS pixels"
    if screen == "phone":
        assert min(right - left for left, right, *_ in figures) > 0.8 * WIDTHS["phone"], "below each other"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_figures_stand_out_from_the_page_in_both_schemes(browser: Any, page: Path, dark: bool) -> None:
    show(browser, page.as_uri(), width=WIDTHS["screen"], dark=dark)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == dark
    inks = browser.execute_script(
        "return [...document.querySelectorAll('h1, p, td, th, figcaption, .tile b')]"
        ".map(e => getComputedStyle(e).color).concat([...document.querySelectorAll('.panels svg text')]"
        ".filter(e => !/#fefefe|#010101/.test(e.getAttribute('style'))).map(e => getComputedStyle(e).fill))"
    )
    assert len(inks) > 300
    assert min(contrast(ink, paper) for ink in set(inks)) > 3
    lines = browser.execute_script(
        "return [...document.querySelectorAll('.panels svg path')].map(e => getComputedStyle(e))"
        ".filter(s => s.strokeWidth.startsWith('2') && s.stroke != 'none').map(s => s.stroke)"
    )
    assert min(contrast(line, paper) for line in set(lines)) > 1.8


def test_the_page_asks_for_nothing_and_has_no_errors(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, page.as_uri(), width=WIDTHS["screen"])
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {address for address in asked if not address.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(…)", as WCAG defines it."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, two: str) -> float:
    light, dark = sorted((luminance(first), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
