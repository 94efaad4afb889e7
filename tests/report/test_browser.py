"""report.html in a real browser: both themes, wide and narrow, readable, quiet, and loading nothing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fmray.report.html import write_report
from tests.report import chromium, records
from tests.report.test_html import poisoned

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.executable() is None, reason="no Chromium is installed")]

# The least contrast of any text against what lies behind it (WCAG 2.1: relative luminance), with the text that has it.
CONTRAST = """(() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
                       return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { if (e.namespaceURI.endsWith('svg')) continue;
                        const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  let worst = [99, ''];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length || e.tagName === 'title') continue;
    const svg = e.namespaceURI.endsWith('svg'), style = getComputedStyle(e);
    const box = svg && e.closest('a') ? parse(getComputedStyle(e.closest('a').querySelector('.node')).fill) : behind(e);
    const ink = parse(svg ? style.fill : style.color);
    const [a, b] = [light(ink.slice(0, 3)), light((box.length === 4 && box[3] === 0 ? behind(e) : box).slice(0, 3))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 60)];
  }
  return worst;
})()"""
# Text that ends outside the page, or that its own box cuts off sideways.
OUTSIDE = """[...document.body.querySelectorAll('*')].filter(e => e.getClientRects().length && !e.closest('.scroll,.lifecycle') &&
  (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 120))"""


async def visit(path: Path, *, width: int, dark: bool) -> dict[str, Any]:
    async with chromium.page() as page:
        await page.open(path.as_uri(), width=width, dark=dark)
        seen = {
            "contrast": await page.evaluate(CONTRAST),
            "outside": await page.evaluate(OUTSIDE),
            "scroll": await page.evaluate("document.documentElement.scrollWidth - innerWidth"),
            "background": await page.evaluate("getComputedStyle(document.body).backgroundColor"),
            "flows": await page.evaluate("[...document.querySelectorAll('.flow')].map(e => [e.className, e.getClientRects().length > 0])"),
            "cut": await page.evaluate("document.querySelector('.lifecycle').scrollWidth - document.querySelector('.lifecycle').clientWidth"),
            "marker": await page.evaluate("window.fooled === undefined"),
            "image": await page.screenshot(),
        }
        return {**seen, "requested": page.requested(), "complaints": page.complaints()}


@pytest.mark.parametrize("make", [records.whole, records.two_rounds, records.refused])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False), (400, True)])
def test_the_page_reads_well_and_asks_for_nothing(tmp_path: Path, make: Any, width: int, dark: bool) -> None:
    path = write_report(make(tmp_path / "x"))
    seen = asyncio.run(visit(path, width=width, dark=dark))
    assert seen["requested"] == [path.as_uri()]
    assert seen["complaints"] == []
    assert seen["contrast"][0] >= 4.5, seen["contrast"]
    assert seen["scroll"] <= 0
    assert seen["outside"] == []
    assert seen["cut"] <= 0
    assert seen["flows"] == [["flow wide", width == 1280], ["flow narrow", width == 400]]
    assert (sum(int(v) for v in seen["background"][4:-1].split(",")) < 150) == dark
    assert len(seen["image"]) > 20_000


def test_hostile_records_run_nothing_and_fetch_nothing(tmp_path: Path) -> None:
    path = write_report(poisoned(records.whole(tmp_path / "x")))
    text = path.read_text().replace("alert(1)", "window.fooled=1")
    path.write_text(text)
    seen = asyncio.run(visit(path, width=1280, dark=False))
    assert seen["requested"] == [path.as_uri()]
    assert seen["complaints"] == []
    assert seen["marker"]
    assert seen["scroll"] <= 0
