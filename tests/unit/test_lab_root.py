"""terraform/local by Terraform's own tools, with the provider's schema and no machine: fmt, validate, test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the root, so that its lock file and .terraform stay as they are."""
    directory = tmp_path_factory.mktemp("root")
    shutil.copytree(
        REPOSITORY / "terraform/local",
        directory / "terraform/local",
        ignore=shutil.ignore_patterns(".terraform", ".terraform.lock.hcl", "*.tfstate*"),
    )
    table = Path("roles/postfix/defaults/main/listeners.yml")
    (directory / table).parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / table, directory / table)
    terraform(directory / "terraform/local", "init")
    return directory / "terraform/local"


def terraform(root: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("terraform", path=path) or "terraform", *arguments, "-no-color"],
        cwd=root,
        env={
            **os.environ,
            "PATH": path,
            "GATEPOST_PYTHON": sys.executable,
            "PYTHONPATH": str(REPOSITORY / "scripts"),
            "TF_CLI_CONFIG_FILE": os.devnull,
            "CHECKPOINT_DISABLE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_is_valid(root: Path) -> None:
    assert "Success! The configuration is valid." in terraform(root, "validate")


def test_its_own_tests_pass(root: Path) -> None:
    runs = (root / "tests/inputs.tftest.hcl").read_text().count('\nrun "')
    assert f"Success! {runs} passed, 0 failed." in terraform(root, "test")


def test_it_is_formatted(root: Path) -> None:
    # -no-color is no option of fmt
    subprocess.run(["terraform", "fmt", "-check", "-recursive", "."], cwd=root, check=True)


def test_the_plugin_is_executable_and_the_same_for_every_platform() -> None:
    wrappers = list((REPOSITORY / "terraform/local/terraform.d").rglob("terraform-provider-lab_v*"))
    assert {wrapper.parent.name for wrapper in wrappers} == {"linux_amd64", "linux_arm64"}
    assert all(os.access(wrapper, os.X_OK) for wrapper in wrappers)
    assert len({wrapper.read_bytes() for wrapper in wrappers}) == 1
