"""A thin layer over PyPI's `tf` 1.2.0 that keeps resources from being lost.

What it changes: Terraform's request to stop only sets an event, so that a create in flight can end and be saved; the
terminal's Ctrl-C, which reaches the whole process group, is ignored; the process ends when Terraform does; every
exception becomes a diagnostic, with the state of whatever exists, so that Terraform knows of it (tainted) instead of
forgetting it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import tf.runner
from tf.iface import Resource
from tf.types import Set, TfType, Unknown

from gatepost.errors import GatepostError

State = dict[str, Any]

STOP = threading.Event()  # set when Terraform asks to stop, or is gone; long steps look at it


class Object(TfType):  # type: ignore[misc] # tf has no type hints that mypy takes
    """An object with named attributes, which `tf` lacks; a dict in Python."""

    def __init__(self, attributes: Mapping[str, TfType]) -> None:
        """Take the attributes' types by name."""
        self.attributes = dict(attributes)

    def encode(self, value: Any) -> Any:
        """Encode for the wire."""
        if value is None or value is Unknown:
            return value
        return {name: kind.encode(value.get(name)) for name, kind in self.attributes.items()}

    def decode(self, value: Any) -> Any:
        """Decode from the wire."""
        if value is None or value is Unknown:
            return value
        return {name: kind.decode(value.get(name)) for name, kind in self.attributes.items()}

    def tf_type(self) -> bytes:
        """Return the type's JSON (docs/plugin-protocol/object-wire-format.md of Terraform)."""
        inner = ",".join(f'"{name}":{kind.tf_type().decode()}' for name, kind in self.attributes.items())
        return f'["object",{{{inner}}}]'.encode()


class ObjectSet(Set):  # type: ignore[misc] # as above
    """A set of objects, equal whatever the order of its members and of the sets in them."""

    def semantically_equal(self, a_decoded: Any, b_decoded: Any) -> bool:
        """Compare two decoded values."""
        return bool(_canonical(a_decoded) == _canonical(b_decoded))


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((name, _canonical(member)) for name, member in value.items())
    if isinstance(value, list | tuple):
        return sorted((_canonical(member) for member in value), key=repr)
    return value


class _Stopper:
    """Replaces tf's interceptor, which stops the server at once and so cuts off a create in flight."""

    def __init__(self) -> None:
        self.stopped = False
        self.server: Any = None  # set by tf.runner

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        if details.method == "/tfplugin6.Provider/StopProvider":
            STOP.set()
        elif details.method == "/plugin.GRPCController/Shutdown":
            self.stopped = True
        return continuation(details)


def serve(provider: Any) -> None:
    """Serve until Terraform says goodbye or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tf.runner._ShutdownInterceptor = _Stopper
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="gatepost-lab-") as directory:
        # tf keeps the connection's certificate and key in $HOME for days and trips over a missing or read-only $HOME
        # and over a clock that went back. A key per process costs a few milliseconds.
        tf.runner._get_cert_cache_path = lambda: Path(directory, "certificate.json")
        tf.runner.run_provider(provider)


def _watch(parent: int) -> None:
    """End this process some time after Terraform was killed; what is being made gets the chance to clean up."""
    while os.getppid() == parent:
        time.sleep(0.5)
    STOP.set()
    deadline = time.monotonic() + 20
    while _busy.count and time.monotonic() < deadline:
        time.sleep(0.1)
    os._exit(1)


class _Busy:
    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self.count += 1
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1


_busy = _Busy()


def report(context: Any, error: Exception) -> None:
    """Put an error into a context's diagnostics."""
    if isinstance(error, GatepostError):
        summary, _, rest = error.found.partition("\n")
        parts = [rest, f"Expected: {error.expected}" if error.expected else "", error.next_step]
        context.diagnostics.add_error(summary, "\n".join(part for part in parts if part))
    else:
        where = "".join(traceback.format_exception(error)[-3:])
        print(where, file=sys.stderr, flush=True)
        context.diagnostics.add_error(f"Mistake in Gatepost's lab: {type(error).__name__}: {error}", where)


class LabResource(Resource, Protocol):  # type: ignore[misc] # as above
    """A resource whose methods may raise: whatever exists stays known to Terraform."""

    def __init__(self, provider: Any) -> None:
        """Take the provider, as tf wants it."""

    @abstractmethod
    def make(self, planned: State) -> State:
        """Create the thing and return its state."""

    @abstractmethod
    def look(self, current: State) -> State | None:
        """Return the true state; None when the thing is gone. Raise when that cannot be told."""

    @abstractmethod
    def change(self, current: State, planned: State) -> State:
        """Make the thing as planned, in place."""

    @abstractmethod
    def remove(self, current: State) -> None:
        """Remove the thing; absent is success."""

    @abstractmethod
    def left_over(self, planned: State, known: set[str]) -> State | None:
        """Return the state of what a failed `make` left; `known` are the ids that were there before it."""

    @abstractmethod
    def ids(self) -> set[str]:
        """Return the ids of all things of this kind."""

    def repaired(self, current: State, planned: State) -> State:
        """Return the plan, with what is broken now planned to be whole."""
        return planned

    def check(self, config: State) -> None:
        """Raise GatepostError when a configuration cannot be; `config` lacks values that are not known yet."""

    def validate(self, diags: Any, type_name: str, config: State) -> None:
        """Check the configuration."""
        super().validate(diags, type_name, config)
        try:
            self.check({name: value for name, value in config.items() if value is not None and _known(value)})
        except GatepostError as error:
            report(_Holder(diags), error)

    def create(self, ctx: Any, planned: State) -> State | None:
        """Create; after an error the state of what exists, which Terraform then marks as tainted."""
        with _busy.one():
            known: set[str] = set()
            try:
                known = self.ids()
                return self.make(planned)
            except Exception as error:  # tf would forget what exists on any exception
                report(ctx, error)
                try:
                    return self.left_over(planned, known)
                except Exception as second:  # likewise
                    report(ctx, second)
                    return None

    def read(self, ctx: Any, current: State) -> State | None:
        """Read; an error leaves the state as it was."""
        try:
            return self.look(current)
        except Exception as error:  # None would mean "deleted"
            report(ctx, error)
            return current

    def update(self, ctx: Any, current: State, planned: State) -> State | None:
        """Update; an error leaves the state as it was."""
        with _busy.one():
            try:
                return self.change(current, planned)
            except Exception as error:  # as in create
                report(ctx, error)
                return current

    def delete(self, ctx: Any, current: State) -> State | None:
        """Delete; after an error the thing stays in Terraform's state."""
        with _busy.one():
            try:
                self.remove(current)
            except Exception as error:  # None would mean "deleted"
                report(ctx, error)
                return current
            return None

    def plan(self, ctx: Any, current: State | None, planned: State) -> State | None:
        """Plan an update."""
        return self.repaired(current or {}, planned)


class _Holder:
    def __init__(self, diagnostics: Any) -> None:
        self.diagnostics = diagnostics


def _known(value: Any) -> bool:
    if value is Unknown:
        return False
    if isinstance(value, dict):
        return all(map(_known, value.values()))
    if isinstance(value, list):
        return all(map(_known, value))
    return True
