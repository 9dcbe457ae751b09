"""Hosts of one server: they agree before a model is loaded, and learn of each other's end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.startup import headless, leaving
from divserve.startup import hosts as divserve_hosts
from divserve.startup.extras import Extras
from divserve.startup.hosts import Head, Link, agreement, has_nodes, heading
from tests.engine.test_refused_modes import config

TERMS = {"version": "1", "extras": {"look-back": False}}
SOON_S = 5


@pytest.fixture
def head() -> Iterator[Head]:
    made = Head(("127.0.0.1", 0), TERMS)
    yield made
    made.close()


def joined(head: Head, terms: dict[str, Any] = TERMS) -> Any:
    """A link that is closed at the end."""
    return closing(Link.to(("127.0.0.1", head.port), terms, patience_s=SOON_S))


def test_a_lost_host_is_noticed_at_once(head: Head) -> None:
    lost = threading.Event()
    head.watch(lost.set)
    with joined(head):
        assert not lost.wait(0.1)
    assert lost.wait(SOON_S)


def test_the_end_of_the_head_is_noticed_at_once(head: Head) -> None:
    lost, ended = threading.Event(), threading.Event()
    head.watch(lost.set)
    with joined(head) as node:
        node.watch(ended.set)
        assert not ended.wait(0.1)
        head.close()
        assert ended.wait(SOON_S)
        assert not lost.wait(0.1)


def test_a_host_lost_during_the_start_ends_the_process(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    monkeypatch.setattr(leaving, "leave", lambda code: left.set() if code == 1 else None)
    with joined(head):
        assert not left.wait(0.1)
    assert left.wait(SOON_S)


def test_a_host_with_other_flags_is_refused_by_name(head: Head) -> None:
    lost = threading.Event()
    head.watch(lost.set)
    other = TERMS | {"extras": {"look-back": True}}
    reason = r"extras is {'look-back': False} on the head and {'look-back': True} on the node"
    with pytest.raises(StartupError, match=reason):
        joined(head, other)
    assert not lost.wait(0.1)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", b"\xff\n", b"[]\n"])
def test_strangers_do_no_harm(head: Head, said: bytes) -> None:
    lost = threading.Event()
    head.watch(lost.set)
    with socket.create_connection(("127.0.0.1", head.port)) as stranger:
        stranger.sendall(said)
    with joined(head):
        assert not lost.wait(0.1)


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(StartupError, match=rf"no head at 127\.0\.0\.1:{port}"):
        Link.to(("127.0.0.1", port), TERMS, patience_s=0)


def test_somebody_else_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        other = threading.Thread(target=hang_up)
        other.start()
        with pytest.raises(StartupError, match=r"is another: (it hung up|no answer)"):
            Link.to(listener.getsockname(), TERMS, patience_s=0)
        other.join()


def test_an_address_that_is_in_use(head: Head) -> None:
    with pytest.raises(StartupError, match=rf"cannot listen .* on 127\.0\.0\.1:{head.port}"):
        Head(("127.0.0.1", head.port), TERMS)


def hosts_of(**parallel: Any) -> Any:
    made = {
        "local_engines_only": False, "data_parallel_size_local": 1, "data_parallel_size": 1,
        "nnodes": 1, "master_addr": "10.0.0.1", "data_parallel_master_ip": "10.0.0.2",
        "data_parallel_rpc_port": 29_550, **parallel,
    }  # fmt: skip
    return SimpleNamespace(parallel_config=SimpleNamespace(**made))


@pytest.mark.parametrize(
    ("parallel", "others"),
    [
        ({}, False),
        ({"data_parallel_size": 2, "data_parallel_size_local": 2}, False),
        ({"data_parallel_size": 2}, True),
        # External and hybrid load balancing: each host is a server.
        ({"data_parallel_size": 2, "local_engines_only": True}, False),
        ({"nnodes": 2}, True),
    ],
)
def test_which_servers_have_other_hosts(parallel: dict[str, Any], others: bool) -> None:
    assert has_nodes(hosts_of(**parallel)) == others


def test_where_hosts_meet() -> None:
    assert divserve_hosts._where(hosts_of()) == ("10.0.0.2", 29_551)
    assert divserve_hosts._where(hosts_of(nnodes=2)) == ("10.0.0.1", 29_551)


def test_a_server_on_one_host_listens_for_nobody() -> None:
    with heading(hosts_of(), Extras()) as head:
        assert head is None


def test_extras_are_part_of_the_agreement() -> None:
    made = config(model_config__model="m", model_config__dtype="d", model_config__max_model_len=9)
    plain = agreement(made, Extras())
    assert agreement(made, Extras(look_back=True)) != plain
    assert agreement(made, Extras(amateurs={"amateur": "drop:2"})) != plain


class Running:
    """Engines that run until something ends the wait for them.

    Args:
        end: called instead of waiting.
        then: called while they are stopped.
    """

    def __init__(self, end: Callable[[], None], then: Callable[[], None]) -> None:
        self.monitor_engine_liveness = end
        self._then = then
        self.stopped: list[float] = []

    def shutdown(self, timeout: float) -> None:
        self._then()
        self.stopped.append(timeout)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("what", "code"), [("engine dies", 1), ("signal", 0), ("head ends", 0)])
def test_exit_codes(what: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resort = SimpleNamespace(within=lambda seconds: None)
    monkeypatch.setattr(leaving, "LastResort", lambda: resort)
    told: list[Callable[[], None]] = []
    link: Any = SimpleNamespace(watch=told.append)

    def end() -> None:
        if what == "engine dies":
            return
        if what == "head ends":
            threading.Thread(target=told[0]).start()
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], SOON_S)

    def interrupt() -> None:
        # Changes nothing any more.
        os.kill(os.getpid(), signal.SIGINT)

    engines = Running(end, interrupt)
    assert headless.watch(engines, link) == code
    assert engines.stopped == [headless.STOP_S]
