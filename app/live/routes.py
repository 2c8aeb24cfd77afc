"""What the server hands out beside Streamlit: the plotly.js that the Python package brings along, nothing from outside; and
the way to the first page by its name, which Streamlit knows without one only."""

from __future__ import annotations

from pathlib import Path

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

PLOTLY_URL = "/headscope/plotly.js"
_FILE = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


async def _plotly(request: Request) -> Response:
    return FileResponse(_FILE, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


async def _first_page(request: Request) -> Response:
    return RedirectResponse(f"/?{request.url.query}")


ROUTES = [Route(PLOTLY_URL, _plotly), Route("/model", _first_page)]
