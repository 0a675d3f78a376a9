"""What the host-side checks read. They only read: nothing here changes, reloads or restarts anything on the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

from gatepost.listeners import Listener, ListenerTable, load


@pytest.fixture(scope="session")
def table() -> ListenerTable:
    """The listener table of this run: LISTENERS=, or the default one."""
    return load(Path(os.environ["LISTENERS"]) if os.environ.get("LISTENERS") else None)


@pytest.fixture(scope="session")
def listeners(table: ListenerTable) -> tuple[Listener, ...]:
    return table.listeners


@pytest.fixture(scope="module")
def value(host: Host) -> Callable[[str], str]:
    """Return a function: the expanded value of one main.cf parameter."""
    return lambda name: host.check_output("postconf -xh %s", name)


@pytest.fixture(scope="module")
def dovecot(host: Host) -> str:
    """The settings that differ from Dovecot's defaults, as Dovecot itself prints them (doveconf(1))."""
    if not host.exists("doveconf"):
        pytest.skip("no Dovecot on this host")
    return host.check_output("doveconf -n 2>/dev/null")
