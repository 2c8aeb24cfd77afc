"""What the server hands out for the live sliders: the plotly.js that the Python package brings along, nothing from outside."""

from __future__ import annotations

from pathlib import Path

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

PLOTLY_URL = "/headscope/plotly.js"
_FILE = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


async def _plotly(request: Request) -> Response:
    return FileResponse(_FILE, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


ROUTES = [Route(PLOTLY_URL, _plotly)]
