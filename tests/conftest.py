"""Servers that are built once per test run, and the path on which test directories share modules."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from environments import Environment

from gatepost import terraform, toolchain

# A shell starts background jobs with SIGINT ignored, and children inherit it;
# tests of Ctrl-C need it as on a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """See to it that `make test` works on a machine where nothing was installed yet."""
    if os.geteuid() == 0:
        toolchain.require(toolchain.LAB, print)
    found = terraform.find(print)
    os.environ["PATH"] += f"{os.pathsep}{found.path.parent}"


def _server(directory: Path, release: int) -> Iterator[Environment]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    environment = Environment(directory, local={"release": release})
    try:
        environment.gatepost("deploy")
        yield environment
    finally:
        environment.gatepost("destroy")


@pytest.fixture(scope="session")
def server13(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A mail server on Debian 13, deployed once for all tests that leave it as they found it."""
    yield from _server(tmp_path_factory.mktemp("debian") / "13", 13)


@pytest.fixture(scope="session")
def server12(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The same on Debian 12."""
    yield from _server(tmp_path_factory.mktemp("debian") / "12", 12)
