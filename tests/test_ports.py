"""Ports of the tests' servers: two processes never get the same one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import server
from tests.support.models import ROOT

ANOTHER = """
import socket
from tests.support import server

asked = iter([{port}, 0])


class Probe(socket.socket):
    def bind(self, address):
        super().bind((address[0], next(asked)))


socket.socket = Probe
print(server.free_port())
"""


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nobody listens there yet; another process is offered it first."""
    monkeypatch.setattr(server, "PORTS", [])
    port = server.free_port()
    command = [sys.executable, "-c", ANOTHER.format(port=port)]
    given = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert int(given) != port
    for lock in server.PORTS:
        lock.close()
