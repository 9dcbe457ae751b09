"""`divserve serve` with one more route, which counts the asyncio tasks of its process."""

from __future__ import annotations

import asyncio
import sys
from typing import Any


async def build_app(client: Any, args: Any) -> Any:
    from divserve import server

    app = await server.build_app(client, args)

    @app.get("/tasks")
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    return app


if __name__ == "__main__":
    from divserve.startup import launch

    sys.exit(launch.serve(sys.argv[2:], build_app))
