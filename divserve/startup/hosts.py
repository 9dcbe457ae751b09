"""One server on several hosts: each host learns that another one has ended.

vLLM's engines do not notice it. A host that is lost would leave requests without an answer until
``--engine-timeout``, and the engines of the other hosts would wait for the lost head for ever. So
the host that serves HTTP, the head, keeps a connection with each headless host (a node), which says
nothing once both have agreed: whoever ends, or is killed, closes it. A machine that loses power
does not, so the kernel asks after it (keep-alive).

The head listens at ``--data-parallel-address`` (with ``--nnodes`` at ``--master-addr``), one port
above ``--data-parallel-rpc-port``.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from divserve import __version__
from divserve.errors import StartupError
from divserve.startup import leaving
from divserve.startup.extras import Extras

__all__ = ["Head", "Link", "agreement", "has_nodes", "heading"]

logger = logging.getLogger("vllm.divserve")

AGREED = b"agreed"
LONGEST_LINE = 65_536
PATIENCE_S = 600.0
"""Longest wait of a node for its head to be started."""
RETRY_S = 1.0
ANSWER_S = 30.0
"""Longest wait for the other side's line."""
IDLE_S, INTERVAL_S, PROBES = 10, 5, 3
"""A host that does not answer the kernel's probes is lost after 25 seconds."""


def has_nodes(config: Any) -> bool:
    """Whether the engines of this server, or parts of them, run on other hosts without HTTP.

    Args:
        config: vLLM's ``VllmConfig`` of a server that is not headless.
    """
    parallel = config.parallel_config
    engines_elsewhere = (
        not parallel.local_engines_only
        and parallel.data_parallel_size_local < parallel.data_parallel_size
    )
    return bool(engines_elsewhere or parallel.nnodes > 1)


def agreement(config: Any, extras: Extras) -> dict[str, Any]:
    """What must be the same on all hosts, because each engine serves any request.

    Args:
        config: vLLM's ``VllmConfig``.
        extras: beside the served model.
    """
    model, cache = config.model_config, config.cache_config
    return {
        "version": __version__,
        "model": model.model,
        "dtype": str(model.dtype),
        "max_model_len": model.max_model_len,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "prefix_caching": cache.enable_prefix_caching,
        "extras": {**extras.amateurs, "look-back": extras.look_back},
    }


def _where(config: Any) -> tuple[str, int]:
    parallel = config.parallel_config
    # With --nnodes and one engine vLLM forgets the other address.
    host = parallel.master_addr if parallel.nnodes > 1 else parallel.data_parallel_master_ip
    return host, parallel.data_parallel_rpc_port + 1


@contextmanager
def heading(config: Any, extras: Extras) -> Iterator[Head | None]:
    """Listens for the nodes of this server; None if all of it is on this host.

    Args:
        config: vLLM's ``VllmConfig``.
        extras: beside the served model.

    Raises:
        StartupError: the address cannot be listened at.
    """
    if not has_nodes(config):
        yield None
        return
    head = Head(_where(config), agreement(config, extras))
    try:
        yield head
    finally:
        head.close()


class Head:
    """The side that serves HTTP.

    Until `watch` is called, a lost node ends this process at once.

    Args:
        address: host and port to listen at; port 0: any.
        terms: as `agreement` returns them.
    """

    def __init__(self, address: tuple[str, int], terms: dict[str, Any]) -> None:
        try:
            self._listener = socket.create_server(address)
        except OSError as error:
            raise StartupError(
                f"cannot listen for other hosts on {address[0]}:{address[1]}: {error.strerror}"
            ) from None
        self.port: int = self._listener.getsockname()[1]
        self._terms = terms
        self._nodes: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._on_loss: Callable[[], None] = lambda: leaving.leave(leaving.STUCK)
        _in_thread(self._listen)

    def watch(self, on_loss: Callable[[], None]) -> None:
        """Sets what is called, in a thread of its own, once a node is lost."""
        self._on_loss = on_loss

    def close(self) -> None:
        """Ends the nodes."""
        with self._lock:
            self._closed = True
            # Closing a listener does not end the wait for it.
            for connection in (self._listener, *self._nodes):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _listen(self) -> None:
        # The wait ends with an error when the listener is shut down.
        with suppress(OSError):
            while True:
                node, (host, *_) = self._listener.accept()
                _in_thread(self._keep, node, host)

    def _keep(self, node: socket.socket, host: str) -> None:
        with node:
            try:
                _keep_alive(node)
                unlike = _differences(self._terms, json.loads(_read_line(node)))
            except (AttributeError, OSError, ValueError):
                # Not one of ours, such as a scan of ports.
                return
            if unlike:
                logger.error("The host %s is not like this one: %s", host, unlike)
                _send_line(node, unlike.encode())
                return
            with self._lock:
                if self._closed or not _send_line(node, AGREED):
                    return
                self._nodes.add(node)
            logger.info("The host %s has joined", host)
            _until_closed(node)
            with self._lock:
                self._nodes.discard(node)
                closed = self._closed
        if not closed:
            logger.error("The host %s is lost: its engines are, too", host)
            self._on_loss()


class Link:
    """A node's side.

    Args:
        connection: from `connect`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, config: Any, extras: Extras, patience_s: float = PATIENCE_S) -> Link:
        """Waits for the head, and agrees with it.

        Args:
            config: vLLM's ``VllmConfig``.
            extras: beside the served model.
            patience_s: longest wait.

        Raises:
            StartupError: there is no head, or it was started with other flags.
        """
        return cls.to(_where(config), agreement(config, extras), patience_s)

    @classmethod
    def to(cls, address: tuple[str, int], terms: dict[str, Any], patience_s: float) -> Link:
        """As `connect`, with the address and the terms themselves."""
        host, port = address
        logger.info("Headless: the head is awaited at %s:%d", host, port)
        end = time.monotonic() + patience_s
        while True:
            try:
                connection = socket.create_connection(address, timeout=ANSWER_S)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise StartupError(f"no head at {host}:{port}: {error}") from None
                time.sleep(RETRY_S)
        _keep_alive(connection)
        try:
            connection.sendall(json.dumps(terms).encode() + b"\n")
            answer = _read_line(connection)
        except OSError as error:
            answer = f"no answer ({error})".encode()
        if answer != AGREED:
            connection.close()
            reason = answer.decode() or "it hung up"
            raise StartupError(f"the head at {host}:{port} is another: {reason}")
        return cls(connection)

    def close(self) -> None:
        """Leaves the head, which takes it for a loss."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def watch(self, on_end: Callable[[], None]) -> None:
        """Sets what is called, in a thread of its own, once the head has ended."""

        def wait() -> None:
            _until_closed(self._connection)
            on_end()

        _in_thread(wait)


def _differences(own: dict[str, Any], other: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} is {value!r} on the head and {other.get(name)!r} on the node"
        for name, value in own.items()
        if other.get(name) != value
    )


def _in_thread(work: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=work, args=args, name="hosts", daemon=True).start()


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(ANSWER_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, IDLE_S),
        (socket.TCP_KEEPINTVL, INTERVAL_S),
        (socket.TCP_KEEPCNT, PROBES),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _read_line(connection: socket.socket) -> bytes:
    """A line without its end, or what came before the connection ended."""
    found = b""
    while not found.endswith(b"\n") and len(found) < LONGEST_LINE:
        more = connection.recv(LONGEST_LINE)
        if not more:
            break
        found += more
    return found.removesuffix(b"\n")


def _send_line(connection: socket.socket, text: bytes) -> bool:
    try:
        connection.sendall(text + b"\n")
    except OSError:
        return False
    return True


def _until_closed(connection: socket.socket) -> None:
    """Waits until the other side has gone."""
    connection.settimeout(None)
    with suppress(OSError):
        _read_line(connection)
