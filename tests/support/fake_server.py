"""`divserve serve` without an engine, in its own process: the real app, launcher and signals.

Its answers have as many tokens as requested, twenty per second.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from divserve.batches.flags import BatchSettings
from tests.support.fake_client import FakeClient, arguments
from tests.support.models import ROOT
from tests.support.server import clean_environment

STEP_S = 0.05
"""Slow enough that 100 streams leave a busy machine time for other requests."""
START_TIMEOUT_S = 150


@contextmanager
def served(log: Path, **edges: Any) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server without an engine.

    Args:
        log: file for its output.
        edges: flags of the edges, and ``batch_dir``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.support.fake_server", str(port), json.dumps(edges)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=clean_environment(), stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                httpx2.get(f"{url}/ready").raise_for_status()
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.2)
        yield url, process
    finally:
        process.kill()
        process.wait()


class SlowClient(FakeClient):
    """Answers step by step, and can be told to stop."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.stopped = asyncio.Event()

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        from vllm.sampling_params import RequestOutputKind

        from divserve.engine.client.gone import ShuttingDown

        self.answer = [self.answer[0]] * params.max_tokens
        streams = params.output_kind == RequestOutputKind.DELTA
        async for output in super().generate(prompt, params, request_id, **options):
            for _ in range(1 if streams else params.max_tokens):
                await asyncio.sleep(STEP_S)
                if self.stopped.is_set():
                    raise ShuttingDown
            yield output

    async def end_requests(self) -> None:
        self.stopped.set()

    def shutdown(self, timeout: float | None = None) -> None: ...


async def serve(port: int, edges: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.server import build_app
    from divserve.startup import launch

    folder = edges.pop("batch_dir", None)
    args = arguments(BatchSettings(batch_dir=folder and Path(folder)), **edges)
    args.port, args.uvicorn_log_level, args.max_model_len = port, "warning", 8192
    client = SlowClient(AsyncEngineArgs.from_cli_args(args).create_engine_config())
    app = await build_app(client, args)  # type: ignore[arg-type]
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        await (await launch.listen(app, args, sock))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), json.loads(sys.argv[2])))
