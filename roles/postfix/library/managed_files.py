#!/usr/bin/python
# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""Keep a service's files as given, checked before they go live. Runs on the server, standard library only."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: managed_files
short_description: Keep a service's configuration files as given, checked before they go live
description:
  - Takes all files of a service at once, so that one round trip compares every one of them (content, owner, mode, and
    whether a Postfix table was compiled from the source that lies beside it).
  - Where something differs, the new files are first put into a private copy of the directory, tables are compiled
    there, and the service's own checker is run over it. Any text on standard error is a failure, since C(postconf)
    exits 0 on misspelt parameters. A failure leaves the live files as they were.
  - Each file is replaced by a rename, so that a reader sees the old or the new one.
  - Works in check mode on a host where the service is not installed yet.
options:
  files:
    description: The files, with their whole content.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: Whole content., type: str}
      secret_content: {description: The same for a content that no log and no diff may show., type: str}
      owner: {description: User., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: Octal mode., type: str, default: "0644"}
      compile: {description: Command that makes PATH.db from it., type: str, choices: [postmap, postalias]}
  directories:
    description: Directories that must exist.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      owner: {description: User., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: Octal mode., type: str, default: "0755"}
  directory:
    description: Directory whose copy, with the new files in place, the checks are shown.
    type: path
    required: true
  checks:
    description: Commands, each a list; C({candidate}) stands for the copy.
    type: list
    elements: list
    default: []
  unit:
    description: systemd unit that reads the files.
    type: str
  reads:
    description: Further files that the unit reads and something else writes.
    type: list
    elements: path
    default: []
author: [Gatepost contributors]
"""

EXAMPLES = r"""
- name: Dovecot's configuration is as rendered
  managed_files:
    directory: /etc/dovecot
    files:
      - path: /etc/dovecot/dovecot.conf
        content: "{{ lookup('ansible.builtin.template', 'etc/dovecot/dovecot.conf.j2') }}"
    checks: [[doveconf, -n, -c, "{candidate}/dovecot.conf"]]
    unit: dovecot
"""

RETURN = r"""
replaced:
  description: Paths whose content, owner, mode or table differed.
  type: list
  elements: str
  returned: always
installed:
  description: Whether O(directory) exists; false in check mode alone, on a host that has not got the package yet.
  type: bool
  returned: always
outdated:
  description:
    - Files of O(files) and O(reads) that are newer than the unit's last start or reload. It stays so until that
      happens, even when a run was interrupted in between.
  type: list
  elements: str
  returned: always
"""

# Postfix waits until a file has not been written for two seconds, lest it read half of it. Ours are never half written.
SETTLED = 3


class Refused(Exception):
    """The candidate did not pass; nothing was replaced."""


def read(path):
    """Return the file's text, or None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def ids(entry):
    """Return the numeric owner and group, None for one that does not exist (yet)."""
    owner = group = None
    with contextlib.suppress(KeyError):
        owner = pwd.getpwnam(entry["owner"]).pw_uid
    with contextlib.suppress(KeyError):
        group = grp.getgrnam(entry["group"]).gr_gid
    return owner, group


def drifted(entry):
    """Tell whether an existing file or directory has another owner or mode than wanted."""
    try:
        found = entry["path"].lstat()
    except OSError:
        return False
    return (found.st_uid, found.st_gid, found.st_mode & 0o7777) != (*ids(entry), entry["mode"])


def entries(text):
    """Return the entries of a table's source, or of what `postmap -s` and `postalias -s` print, as a dict."""
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#"))
    # postalias(1) adds entries of its own, which an NIS server wants.
    return {
        pair[0].rstrip(":").lower(): pair[1].strip() if len(pair) > 1 else ""
        for pair in pairs
        if not pair[0].startswith(("YP_", "@:"))
    }


def table_is_current(path, compiler):
    """Tell whether PATH.db is no older than its source and holds the same entries."""
    try:
        if Path(f"{path}.db").stat().st_mtime < path.stat().st_mtime:
            return False
    except OSError:
        return False
    shown = subprocess.run([compiler, "-s", f"hash:{path}"], capture_output=True, text=True, check=False)
    return shown.returncode == 0 and entries(shown.stdout) == entries(read(path))


def differs(file):
    """Tell whether the live file's content or its table is not as wanted."""
    if read(file["path"]) != file["content"] or file["path"].is_symlink():
        return True
    return bool(file["compile"]) and not table_is_current(file["path"], file["compile"])


def run(command, live=None):
    """Run a checker; any text on standard error is a failure, but for lines about the live directory.

    `postfix -c CANDIDATE check` looks at both, and what is wrong with the live one may be what is to be repaired.
    Standard error is a terminal, since Postfix's scripts write their warnings to the log alone where there is none.
    """
    terminal, end = os.openpty()
    told = b""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=end)
    except FileNotFoundError as error:
        os.close(terminal)
        raise Refused(f"{command[0]} is not installed.") from error
    finally:
        os.close(end)
    # Linux gives EIO, not end of file, when the last writer has closed its end.
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            told += part
    os.close(terminal)
    lines = [line for line in told.decode(errors="replace").splitlines() if line.strip()]
    if process.wait() != 0 or any(live is None or f"{live}/" not in line for line in lines):
        raise Refused("\n".join([f"{' '.join(command)} (exit {process.returncode}):", *lines]))


def settle(path):
    """Date a finished file back, so that its reader need not wait."""
    then = time.time() - SETTLED
    os.utime(path, (then, then))


def check(directory, files, checks):
    """Build the candidate beside the live directory, compile its tables and run the checks over it."""
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        candidate = Path(scratch, directory.name)
        shutil.copytree(directory, candidate, ignore=shutil.ignore_patterns("*.db"), ignore_dangling_symlinks=True)
        for file in files:
            target = candidate / file["path"].name
            target.write_text(file["content"], encoding="utf-8", errors="surrogateescape")
            settle(target)
            if file["compile"]:
                # By the new main.cf, which is among the first files: the live one may be what is to be repaired.
                run([file["compile"], "-c", str(candidate), f"hash:{target}"])
        for command in checks:
            run([word.replace("{candidate}", str(candidate)) for word in command], live=directory)


def set_attributes(entry):
    """Set owner and mode right."""
    os.chown(entry["path"], *ids(entry))
    entry["path"].chmod(entry["mode"])


def replace(file):
    """Rename a complete file over the live one, so that it never holds half of the content or the wrong mode."""
    path = file["path"]
    if read(path) != file["content"] or path.is_symlink():
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(temporary)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(file["content"])
                stream.flush()
                os.fsync(stream.fileno())
            set_attributes({**file, "path": temporary})
            settle(temporary)
            temporary.rename(path)
        except BaseException:
            temporary.unlink()
            raise
    if file["compile"] and not table_is_current(path, file["compile"]):
        run([file["compile"], f"hash:{path}"])


def outdated(unit, paths):
    """Return the paths put in place since the unit last started or reloaded."""
    shown = subprocess.run(
        ["systemctl", "show", "-P", "StateChangeTimestampMonotonic", unit], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not shown.isdigit() or shown == "0":
        return []
    now = time.time()
    since = now - time.clock_gettime(time.CLOCK_MONOTONIC) + int(shown) / 1e6
    # A time in the future tells of a clock that was set back, not of a change.
    return [str(path) for path in paths if path.exists() and since < path.stat().st_ctime <= now]


def diff_of(file):
    """Return what --diff shows; of a secret only that it differs."""
    shown = {"before_header": str(file["path"]), "after_header": str(file["path"])}
    if file["secret"]:
        return {**shown, "before": "", "after": ""}
    return {**shown, "before": read(file["path"]) or "", "after": file["content"]}


def main():
    """Run the module."""
    entry = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
    }
    directory = {**entry, "mode": {"type": "str", "default": "0755"}}
    file = {
        **entry,
        "mode": {"type": "str", "default": "0644"},
        "content": {"type": "str"},
        "secret_content": {"type": "str", "no_log": True},
        "compile": {"type": "str", "choices": ["postmap", "postalias"]},
    }
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": file,
                "required_one_of": [("content", "secret_content")],
                "mutually_exclusive": [("content", "secret_content")],
            },
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "directory": {"type": "path", "required": True},
            "checks": {"type": "list", "elements": "list", "default": []},
            "unit": {"type": "str"},
            "reads": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    checked = Path(module.params["directory"])
    files = [
        {**file, "path": Path(file["path"]), "mode": int(file["mode"], 8), "secret": file["content"] is None}
        for file in module.params["files"]
    ]
    for file in files:
        file["content"] = file["secret_content"] if file["secret"] else file["content"]
    directories = [
        {**directory, "path": Path(directory["path"]), "mode": int(directory["mode"], 8)}
        for directory in module.params["directories"]
    ]

    wrong = [file for file in files if differs(file)]
    missing = [directory for directory in directories if not directory["path"].is_dir()]
    misowned = [entry for entry in directories + files if drifted(entry)]
    replaced = list(dict.fromkeys(str(entry["path"]) for entry in missing + wrong + misowned))
    result = {"changed": bool(replaced), "replaced": replaced, "installed": checked.is_dir(), "outdated": []}
    if module._diff:
        result["diff"] = [diff_of(file) for file in wrong]
    if not checked.is_dir():
        if module.check_mode:
            module.exit_json(**result)
        module.fail_json(msg=f"{checked} is missing. Expected: the package that brings it. Next: install it.")
    try:
        if not module.check_mode:
            for entry in directories + files:
                if None in ids(entry):
                    raise Refused(f"{entry['path']}: there is no user {entry['owner']} or no group {entry['group']}.")
            # Before the check, which complains of the live files' modes too.
            for entry in misowned:
                set_attributes(entry)
        if wrong:
            check(checked, files, module.params["checks"])
        if not module.check_mode:
            for directory in missing:
                directory["path"].mkdir(mode=0o700, parents=True)
                set_attributes(directory)
            for file in wrong:
                replace(file)
    except Refused as refused:
        module.fail_json(msg=f"The new configuration was refused; the live files are as they were. {refused}")
    except OSError as error:
        module.fail_json(msg=f"The files could not be replaced: {error}. Next: repair that and run again.")
    if module.params["unit"]:
        paths = [file["path"] for file in files] + [Path(path) for path in module.params["reads"]]
        result["outdated"] = outdated(module.params["unit"], paths)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
