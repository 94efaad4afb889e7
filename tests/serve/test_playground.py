"""The playground in a real Chromium, against a real server: it streams, scores, shows the gate's verdict, and is driven by keys alone."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmray.serve import application
from fmray.serve.deploy import running
from fmray.serve.deployment import DeployConfig
from fmray.serve.foreground import admitted
from fmray.serve.operation import Operation
from tests.report import chromium
from tests.report.test_browser import CONTRAST

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.executable() is None, reason="no Chromium is installed")]

# Where screenshots are kept for a person to look at; nowhere unless asked.
SHOTS = os.environ.get("FMRAY_SCREENSHOTS")
OUTSIDE = """[...document.body.querySelectorAll('*')].filter(e => e.getClientRects().length && !e.matches('.skip, option') &&
  (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("playground") / "feedback.jsonl"


@pytest.fixture(scope="module")
def url(experiment: Path, serve_port: int, feedback: Path) -> Iterator[str]:
    specs = admitted([experiment / "base", experiment / "tuned"], decision=None, waiver=None)
    config = DeployConfig(app="playground", route="/play", num_cpus=0.1)
    with running(specs, config, keep=False, operation=Operation(feedback=str(feedback))) as url:
        yield url
    assert not application.is_up("playground")


async def until(page: chromium.Page, condition: str) -> None:
    for _ in range(150):
        if await page.evaluate(condition):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{condition} did not come true; the page says {await page.evaluate('document.body.innerText')}")


async def press(page: chromium.Page, key: str, *, control: bool = False) -> None:
    for kind in ("keyDown", "keyUp"):
        await page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=2 if control else 0, windowsVirtualKeyCode={"Enter": 13, "Escape": 27, "Tab": 9}[key])


async def visit(url: str, *, width: int, dark: bool) -> dict[str, Any]:
    async with chromium.page() as page:
        await page.open(url, width=width, dark=dark)
        await until(page, "document.querySelector('#health')?.textContent === 'ready'")
        await page.evaluate("{ document.querySelector('#seed').value = '3'; document.querySelector('#prompt').focus(); }")
        await press(page, "Enter", control=True)
        await until(page, "document.querySelector('#count').textContent === '1'")
        seen: dict[str, Any] = {
            "text": await page.evaluate("document.querySelector('#text').textContent"),
            "figures": await page.evaluate("['first', 'took', 'rate', 'p50'].map(id => document.getElementById(id).textContent)"),
            "verdict": await page.evaluate("document.querySelector('#verdict').textContent"),
            "card": await page.evaluate("document.querySelector('#card').textContent"),
            "contrast": await page.evaluate(CONTRAST),
            "outside": await page.evaluate(OUTSIDE),
            "scroll": await page.evaluate("document.documentElement.scrollWidth - innerWidth"),
            "background": await page.evaluate("getComputedStyle(document.body).backgroundColor"),
        }
        await keep(page, f"completion-{width}-{'dark' if dark else 'light'}")
        await page.evaluate("document.querySelector('#accept').click()")
        await until(page, "document.querySelector('#thanks').textContent.startsWith('Kept')")
        await page.evaluate("{ const m = document.querySelector('#model'); m.value = 'tuned'; m.dispatchEvent(new Event('change')); }")
        await page.evaluate("document.querySelector('#prompt').focus()")
        await press(page, "Enter", control=True)
        await until(page, "document.querySelector('#count').textContent === '2'")
        seen["scores"] = await page.evaluate("[...document.querySelectorAll('.score')].map(e => [e.children[0].textContent, parseFloat(e.children[2].textContent)])")
        seen["outside"] += await page.evaluate(OUTSIDE)
        seen["contrast"] = min(seen["contrast"], await page.evaluate(CONTRAST))
        await keep(page, f"classification-{width}-{'dark' if dark else 'light'}")
        order = []
        await page.evaluate("document.activeElement.blur()")
        for _ in range(5):
            await press(page, "Tab")
            order.append(await page.evaluate("document.activeElement.id || document.activeElement.className"))
        return {**seen, "order": order, "requested": page.requested(), "complaints": page.complaints()}


async def keep(page: chromium.Page, name: str) -> None:
    if SHOTS:
        whole = await page.evaluate("document.documentElement.scrollHeight")
        width = await page.evaluate("innerWidth")
        await page.call("Emulation.setDeviceMetricsOverride", width=width, height=whole, deviceScaleFactor=1, mobile=width < 600)
        (Path(SHOTS) / f"{name}.png").write_bytes(await page.screenshot())


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_it_is_driven_by_keys_in_both_themes_on_wide_and_narrow_screens(url: str, feedback: Path, width: int, dark: bool) -> None:
    before = feedback.read_text().count("\n") if feedback.exists() else 0
    seen = asyncio.run(visit(url, width=width, dark=dark))
    assert seen["text"].startswith("Return the")
    assert len(seen["text"]) > len("Return the")
    assert all(any(c.isdigit() for c in figure) for figure in seen["figures"]), seen["figures"]
    assert seen["verdict"] == "admitted by its gate"
    assert "eval/perplexity < 40" in seen["card"]
    assert sorted(label for label, _ in seen["scores"]) == ["email", "json", "os"]
    assert sum(share for _, share in seen["scores"]) == pytest.approx(100, abs=0.3)
    assert seen["contrast"][0] >= 4.5, seen["contrast"]
    assert seen["outside"] == []
    assert seen["scroll"] <= 0
    assert (sum(int(v) for v in seen["background"][4:-1].split(",")) < 150) == dark
    assert all(request.startswith(url) or request.startswith("data:") for request in seen["requested"]), seen["requested"]
    assert seen["complaints"] == []
    assert len(set(seen["order"])) == 5
    line = json.loads(feedback.read_text().splitlines()[-1])
    assert feedback.read_text().count("\n") == before + 1
    assert (line["model"], line["verdict"], line["text"]) == ("base", "accepted", seen["text"])
