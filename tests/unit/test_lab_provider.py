"""The provider's layer over `tf`: nothing that exists is ever forgotten, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tf.iface import PlanContext
from tf.provider import ProviderServicer
from tf.types import Number, Set, String, Unknown
from tf.utils import Diagnostics

from gatepost.errors import GatepostError
from gatepost.lab import store
from gatepost.lab.provider import framework
from gatepost.lab.provider.resources import FirewallResource, LabProvider, MachineResource, NetworkResource


class Thing(framework.LabResource):
    """A resource whose steps do as they are told."""

    def __init__(self, **steps: Any) -> None:
        self.steps = steps

    @classmethod
    def get_name(cls) -> str:
        return "thing"

    @classmethod
    def get_schema(cls) -> Any:
        return NetworkResource.get_schema()

    def _do(self, step: str) -> Any:
        done = self.steps.get(step)
        if isinstance(done, Exception):
            raise done
        return done

    def ids(self) -> set[str]:
        return set()

    def make(self, planned: framework.State) -> Any:
        return self._do("make")

    def left_over(self, planned: framework.State, known: set[str]) -> Any:
        return self._do("left_over")

    def look(self, current: framework.State) -> Any:
        return self._do("look")

    def change(self, current: framework.State, planned: framework.State) -> Any:
        return self._do("change")

    def remove(self, current: framework.State) -> None:
        self._do("remove")


@pytest.fixture
def context() -> Any:
    return SimpleNamespace(diagnostics=Diagnostics())


def errors(context: Any) -> list[str]:
    return [f"{d.summary}\n{d.detail}" for d in context.diagnostics.diagnostics]


ERRORS = [
    GatepostError("it broke", expected="better", next_step="mend it"),
    RuntimeError("it broke"),
    OSError(28, "it broke"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_create_that_fails_halfway_returns_what_exists(context: Any, error: Exception) -> None:
    assert Thing(make=error, left_over={"id": "x"}).create(context, {}) == {"id": "x"}
    assert "it broke" in errors(context)[0]


@pytest.mark.parametrize("error", ERRORS)
def test_a_read_that_fails_never_means_deleted(context: Any, error: Exception) -> None:
    assert Thing(look=error).read(context, {"id": "x"}) == {"id": "x"}
    assert len(errors(context)) == 1


@pytest.mark.parametrize("error", ERRORS)
def test_a_delete_that_fails_keeps_the_thing_in_the_state(context: Any, error: Exception) -> None:
    assert Thing(remove=error).delete(context, {"id": "x"}) == {"id": "x"}
    assert len(errors(context)) == 1


@pytest.mark.parametrize("error", ERRORS)
def test_an_update_that_fails_keeps_the_old_state(context: Any, error: Exception) -> None:
    assert Thing(change=error).update(context, {"id": "x"}, {"id": "x", "a": 1}) == {"id": "x"}
    assert len(errors(context)) == 1


def test_what_went_well_is_returned(context: Any) -> None:
    thing = Thing(make={"id": "a"}, look=None, change={"id": "c"})
    assert thing.create(context, {}) == {"id": "a"}
    assert thing.read(context, {"id": "a"}) is None
    assert thing.update(context, {}, {}) == {"id": "c"}
    assert thing.delete(context, {"id": "a"}) is None
    assert errors(context) == []


def test_an_error_says_found_expected_and_next(context: Any) -> None:
    framework.report(context, ERRORS[0])
    assert errors(context) == ["it broke\nExpected: better\nmend it"]


def test_unknown_values_are_not_looked_into() -> None:
    diagnostics = Diagnostics()
    resource = FirewallResource(None)
    for rules in (Unknown, [Unknown], [{"port": Unknown, "protocol": "tcp", "sources": ["::/0"]}],
                  [{"port": 25, "protocol": "tcp", "sources": Unknown}]):  # fmt: skip
        resource.validate(diagnostics, "lab_firewall", {"name": Unknown, "network": Unknown, "rules": rules})
    MachineResource(None).validate(diagnostics, "lab_machine", {"name": Unknown, "release": Unknown, "mx_for": Unknown})
    assert not diagnostics.has_errors()


@pytest.mark.parametrize(
    ("resource", "config", "words"),
    [
        (FirewallResource, {"rules": [{"port": 25, "protocol": "tcp", "sources": ["10.0.0.1/8"]}]}, "10.0.0.0/8"),
        (FirewallResource, {"name": "Wall"}, "Wall"),
        (MachineResource, {"release": 11}, "12 or 13"),
        (MachineResource, {"name": "a_b"}, "a_b"),
        (NetworkResource, {"name": ""}, "network name ''"),
        (NetworkResource, {"intact": True}, "read-only"),
    ],
)
def test_bad_configuration_is_refused_before_anything_is_made(
    resource: Any, config: dict[str, Any], words: str
) -> None:
    context = SimpleNamespace(diagnostics=Diagnostics())
    resource(None).validate(context.diagnostics, "lab_x", config)
    assert words in errors(context)[0]


def test_objects_pass_the_wire_also_when_partly_unknown() -> None:
    kind = framework.ObjectSet(framework.Object({"port": Number(), "sources": Set(String())}))
    assert kind.tf_type() == b'["set",["object",{"port":"number","sources":["set","string"]}]]'
    for value in (None, Unknown, [], [{"port": 25, "sources": Unknown}], [{"port": Unknown, "sources": ["::/0"]}]):
        assert kind.decode(kind.encode(value)) == value


def test_sets_of_objects_are_equal_in_any_order() -> None:
    kind = framework.ObjectSet(framework.Object({"port": Number(), "sources": Set(String())}))
    one = [{"port": 25, "sources": ["a", "b"]}, {"port": 587, "sources": ["a"]}]
    two = [{"sources": ["a"], "port": 587}, {"sources": ["b", "a"], "port": 25}]
    assert kind.semantically_equal(one, two)
    assert not kind.semantically_equal(one, two[:1])
    assert not kind.semantically_equal(one, [two[0], {"sources": ["b"], "port": 25}])
    assert not kind.semantically_equal(None, one)


@pytest.mark.parametrize(
    ("resource", "broken"),
    [(MachineResource, {"status": "stopped", "network_ok": False}), (FirewallResource, {"enforced": False}),
     (NetworkResource, {"intact": False})],
)  # fmt: skip
def test_what_is_broken_is_planned_to_be_whole(resource: Any, broken: dict[str, Any]) -> None:
    plan = resource(None).plan(PlanContext(Diagnostics(), "x", changed_fields=set()), broken, dict(broken))
    assert all(plan[name] != value for name, value in broken.items())


def test_every_schema_has_a_version_and_describes_every_attribute() -> None:
    # Without a version, tf upgrades the state on every read, with a warning.
    servicer = ProviderServicer(LabProvider())
    response = servicer.GetProviderSchema(None, None)
    assert set(response.resource_schemas) == {"lab_network", "lab_firewall", "lab_machine"}
    for schema in response.resource_schemas.values():
        assert schema.version >= 1
        assert all(attribute.description for attribute in schema.block.attributes)


def test_a_book_without_the_thing_means_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, context: Any) -> None:
    monkeypatch.setattr(store.host, "DIRECTORY", tmp_path)
    for resource in (NetworkResource, FirewallResource, MachineResource):
        assert resource(None).read(context, {"id": "x", "name": "gone"}) is None
    assert errors(context) == []


def test_stop_sets_an_event_and_lets_the_call_end() -> None:
    stopper = framework._Stopper()
    seen = []
    for method in ("/tfplugin6.Provider/StopProvider", "/plugin.GRPCController/Shutdown"):
        framework.STOP.clear()
        assert (
            stopper.intercept_service(lambda details: seen.append(details) or "handler", SimpleNamespace(method=method))
            == "handler"
        )
    assert stopper.stopped
    assert not framework.STOP.is_set()
    stopper.intercept_service(lambda details: None, SimpleNamespace(method="/tfplugin6.Provider/StopProvider"))
    assert framework.STOP.is_set()
    framework.STOP.clear()


COOKIE = {"TF_PLUGIN_MAGIC_COOKIE": "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2"}


def start(**environment: str) -> subprocess.Popen[str]:
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    # A shell stands for Terraform: the provider's parent.
    return subprocess.Popen(
        ["sh", "-c", f"{sys.executable} -P -m gatepost.lab.provider & echo $!; wait"],
        env={"PYTHONPATH": str(scripts), "PATH": "/usr/bin:/bin", **COOKIE, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_it_starts_without_a_home_and_ignores_the_terminal_s_ctrl_c_and_ends_with_terraform() -> None:
    process = start(HOME="/nonexistent")
    assert process.stdout
    pid = int(process.stdout.readline())
    assert process.stdout.readline().startswith("1|6|unix|")  # go-plugin's handshake
    try:
        Path(f"/proc/{pid}/cmdline").read_bytes()
        os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert Path(f"/proc/{pid}/cmdline").read_bytes()
        process.kill()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
