"""Runs a playbook through ansible-runner and tells what happened, without a wall of output."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatepost import environment
from gatepost.errors import GatepostError
from gatepost.progress import Progress
from gatepost.settings import Settings
from gatepost.verify.model import ExitCode

CONFIG = environment.CHECKOUT / "ansible.cfg"
GRACE_SECONDS = 20  # from the first SIGINT to ansible-playbook until it is killed
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(slots=True)
class Outcome:
    """What a play did, over all hosts."""

    tasks: int = 0
    changed: int = 0
    changes: list[str] = field(default_factory=list)  # names of the tasks that changed something
    failures: list[str] = field(default_factory=list)  # "TASK: why"


def run(
    settings: Settings, playbook: Path, progress: Progress, *, listeners_file: Path | None, check: bool = False
) -> Outcome:
    """Run a playbook on the environment's hosts; `check` only says what would change.

    Raises GatepostError with the failed task's own words, and KeyboardInterrupt when the user stopped it.
    """
    # ansible-runner is heavy: 0.4 s that other commands need not pay.
    from ansible_runner import Runner, RunnerConfig

    arguments = ["--diff"] if check or progress.verbose else []
    if check:
        arguments.append("--check")
    if listeners_file is not None:
        arguments += ["-e", f"@{listeners_file}"]
    outcome = Outcome()

    def on_event(event: dict[str, Any]) -> bool:
        _take(event, outcome, progress)
        return False  # keep no event file: results may quote what must not be kept

    with tempfile.TemporaryDirectory(prefix="gatepost-") as private:
        config = RunnerConfig(
            private_data_dir=private,
            project_dir=str(environment.CHECKOUT),
            playbook=str(playbook),
            inventory=[str(settings.hosts_file)],
            envvars=_environment(),
            cmdline=" ".join(map(_quoted, arguments)) or None,
            settings={"pexpect_timeout": 1, "suppress_ansible_output": True},
            suppress_output_file=True,
            suppress_env_files=True,
            quiet=True,
        )
        config.prepare()
        with _interruptible(progress) as cancelled:
            runner = Runner(config, event_handler=on_event, cancel_callback=cancelled)
            status, code = runner.run()
            interrupted = cancelled() or cancelled.asked
    if interrupted:
        raise KeyboardInterrupt
    if status != "successful":
        raise GatepostError(
            f"ansible-playbook {playbook.name}: " + ("\n  ".join(outcome.failures) or f"{status}, exit code {code}"),
            next_step=f"Mend it and run the same again, which goes on from here. All output: {progress.path}",
            exit_code=ExitCode.INCONCLUSIVE,
        )
    return outcome


def _quoted(argument: str) -> str:
    import shlex

    return shlex.quote(argument)


def _environment() -> dict[str, str]:
    return {
        "ANSIBLE_CONFIG": str(CONFIG),
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }


class _Cancel:
    """Ctrl-C for a playbook: SIGINT once, so that Ansible ends its connections; killed if that takes too long."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.asked = False
        self._deadline = 0.0

    def ask(self, _number: int, _frame: object) -> None:
        if self.asked:
            return
        self.asked = True
        self._deadline = time.monotonic() + GRACE_SECONDS
        self.progress.detail("stopping Ansible")
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"ansible-playbook" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGINT)

    def __call__(self) -> bool:
        return self.asked and time.monotonic() > self._deadline


@contextlib.contextmanager
def _interruptible(progress: Progress) -> Any:
    cancel = _Cancel(progress)
    before = {number: signal.signal(number, cancel.ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take(event: dict[str, Any], outcome: Outcome, progress: Progress) -> None:
    kind, data = event.get("event", ""), event.get("event_data", {})
    text = _COLOUR.sub("", event.get("stdout", "")).strip()
    if text:
        progress.log(text)
    if kind == "playbook_on_task_start":
        progress.detail(data.get("name", ""))
    elif kind == "runner_on_ok":
        outcome.tasks += 1
        if data.get("res", {}).get("changed"):
            outcome.changed += 1
            outcome.changes.append(data.get("task", ""))
    elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
        outcome.failures.append(f"{data.get('task', kind)} ({data.get('host', '')}): {_reason(data.get('res', {}))}")
    elif kind in ("error", "verbose") and text and text.startswith(("ERROR", "[ERROR]")):
        outcome.failures.append(text)


def _reason(result: dict[str, Any]) -> str:
    parts = [str(result[key]).strip() for key in ("msg", "stderr", "module_stderr") if result.get(key)]
    failed = [r for r in result.get("results", []) if isinstance(r, dict) and r.get("failed")]
    parts += [f"{r.get('item', '')}: {_reason(r)}" for r in failed]
    lines = "\n".join(dict.fromkeys(parts)).splitlines()
    return "\n    ".join(lines[-25:]) or "no message"
