"""The playground: one page of our own at the application's root, which loads nothing but the server's own answers."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response

PAGE = Path(__file__).with_name("playground.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@cache
def page() -> tuple[str, dict[str, str]]:
    """The page and its headers: its one script runs by its hash, nothing else does, and nothing may frame it."""
    text = PAGE.read_text(encoding="utf-8")
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(text)]
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return text, headers


def add_playground(api: "FastAPI") -> None:
    """Adds the page at `/`. It holds no secret: where the interface asks for a key, the page asks its reader for one."""
    from fastapi.responses import HTMLResponse

    # Without a slash too: below a route of its own, that is the URL which an application is told by.
    @api.get("", include_in_schema=False)
    @api.get("/", include_in_schema=False)
    async def playground() -> "Response":
        text, headers = page()
        return HTMLResponse(text, headers=headers)
