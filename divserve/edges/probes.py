"""The probes of an orchestrator; ``/health`` is among the other routes."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

__all__ = ["router"]

router = APIRouter()


@router.get("/live")
@router.head("/live", include_in_schema=False)
async def live() -> dict[str, str]:
    """200 while the process answers at all, whatever the engines do."""
    return {"status": "live"}


@router.get("/ready")
@router.head("/ready", include_in_schema=False)
async def ready(raw_request: Request) -> JSONResponse:
    """200 while new requests are welcome: the engine lives and the server does not drain."""
    state = raw_request.app.state
    if state.traffic.draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    if not state.engine_client.health()["large"]:
        return JSONResponse({"status": "dead"}, status_code=503)
    return JSONResponse({"status": "ready"})
