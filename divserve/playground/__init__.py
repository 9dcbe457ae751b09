"""The playground: a page that shows what a method does to each token.

It is static files, which hold no data and need no key; what they do, they do with the public API,
with its keys and limits. All their addresses are relative, so that a proxy may add a prefix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from divserve.http.paths import PLAYGROUND

__all__ = ["STATIC", "install"]

STATIC = Path(__file__).parent / "static"
"""The files."""

HEADERS = {
    # Nothing inline, nothing of another host.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    # Asked for again each time, and answered with 304 by the ETag until an upgrade changes it.
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page(StaticFiles):
    """The files with their headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file at a path below the page's own.

        Raises:
            HTTPException: there is none (404), or the method is not GET or HEAD (405).
        """
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def install(app: FastAPI) -> None:
    """Adds the page to the routes of `app`."""

    async def with_slash() -> Any:
        # Relative, so that it is right behind any proxy; the page's own addresses need the slash.
        return RedirectResponse(f"{PLAYGROUND[1:]}/", headers=HEADERS)

    app.add_api_route(PLAYGROUND, with_slash, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount(f"{PLAYGROUND}/", Page(directory=STATIC, html=True), name="playground")
