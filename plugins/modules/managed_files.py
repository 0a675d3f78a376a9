#!/usr/bin/python
# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""Keep a service's files as given, checked before they replace the live ones. Runs on the server, standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Keep a service's configuration files as given, checked before they go live
description:
  - Takes all files of a service at once, so that one round trip compares every one of them (content, owner, mode, and
    whether a Postfix table was compiled from the source that lies beside it).
  - Where something differs, the new files are first put into a private copy of the directory, tables are compiled there,
    and the service's own checker is run over it. Any text on standard error is a failure, since C(postconf) exits 0 on
    misspelt parameters. A failure leaves the live files as they were.
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
      - {path: /etc/dovecot/dovecot.conf, content: "{{ lookup('ansible.builtin.template', 'etc/dovecot/dovecot.conf.j2') }}"}
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
    - Files of O(files) and O(reads) that are newer than the unit's last start or reload. It stays so until that happens,
      even when a run was interrupted in between.
  type: list
  elements: str
  returned: always
"""

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule


# Postfix waits until a file that it reads has not been written for two seconds, lest it be half written. Ours never are.
SETTLED = 3


class Refused(Exception):
    """The candidate did not pass; nothing was replaced."""


def read(path):
    """Return the file's text, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return None


def ids(file):
    """Return the numeric owner and group, or None for one that does not exist (yet)."""
    try:
        owner = pwd.getpwnam(file["owner"]).pw_uid
    except KeyError:
        owner = None
    try:
        group = grp.getgrnam(file["group"]).gr_gid
    except KeyError:
        group = None
    return owner, group


def attributes(path):
    """Return (owner, group, mode) of an existing path, else None."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


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
        if os.stat(path + ".db").st_mtime < os.stat(path).st_mtime:
            return False
    except OSError:
        return False
    shown = subprocess.run([compiler, "-s", "hash:" + path], capture_output=True, text=True, check=False)
    return shown.returncode == 0 and entries(shown.stdout) == entries(read(path))


def differs(file):
    """Tell whether the live file's content or its table is not as wanted."""
    path = file["path"]
    if read(path) != file["content"] or os.path.islink(path):
        return True
    return bool(file["compile"]) and not table_is_current(path, file["compile"])


def drifted(entry):
    """Tell whether an existing file or directory has another owner or mode than wanted."""
    found = attributes(entry["path"])
    return found is not None and found != (*ids(entry), int(entry["mode"], 8))


def run(command):
    """Run a checker; any text on standard error is a failure.

    Standard error is a terminal, since Postfix's scripts write their warnings to the log alone where there is none.
    """
    terminal, end = os.openpty()
    try:
        with open(terminal, "rb", buffering=0) as errors:
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=end) as process:
                os.close(end)
                shown = process.stdout.read()
            told = b""
            # Linux gives EIO, not end of file, when the last writer has closed its end.
            with contextlib.suppress(OSError):
                while part := errors.read(65536):
                    told += part
    except FileNotFoundError as error:
        raise Refused(f"{command[0]} is not installed") from error
    if process.returncode != 0 or told.strip():
        text = (told.strip() or shown.strip()).decode(errors="replace").replace("\r\n", "\n")
        raise Refused(f"{' '.join(command)} (exit {process.returncode}):\n{text}")


def settle(path):
    """Date a finished file back, so that its reader need not wait."""
    then = time.time() - SETTLED
    os.utime(path, (then, then))


def check(directory, files, checks):
    """Build the candidate beside the live directory, compile its tables and run the checks over it."""
    scratch = tempfile.mkdtemp(prefix="." + os.path.basename(directory) + ".", dir=os.path.dirname(directory))
    try:
        candidate = os.path.join(scratch, os.path.basename(directory))
        shutil.copytree(directory, candidate, ignore=shutil.ignore_patterns("*.db"), ignore_dangling_symlinks=True)
        for file in files:
            target = os.path.join(candidate, os.path.basename(file["path"]))
            with open(target, "w", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(file["content"])
            settle(target)
            if file["compile"]:
                run([file["compile"], "hash:" + target])
        for command in checks:
            run([word.replace("{candidate}", candidate) for word in command])
    finally:
        shutil.rmtree(scratch)


def known_ids(entry):
    """Return the numeric owner and group, which must exist by now."""
    owner, group = ids(entry)
    if owner is None or group is None:
        raise Refused(f"{entry['path']}: there is no user {entry['owner']} or no group {entry['group']}")
    return owner, group


def set_attributes(entry):
    """Set owner and mode right."""
    os.chown(entry["path"], *known_ids(entry))
    os.chmod(entry["path"], int(entry["mode"], 8))


def replace(file):
    """Rename a complete file over the live one, so that it never holds half of the content or the wrong mode."""
    path = file["path"]
    owner, group = known_ids(file)
    if read(path) != file["content"] or os.path.islink(path):
        handle, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", dir=os.path.dirname(path))
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(file["content"])
                os.fchown(stream.fileno(), owner, group)
                os.fchmod(stream.fileno(), int(file["mode"], 8))
                stream.flush()
                os.fsync(stream.fileno())
            settle(temporary)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    if file["compile"] and not table_is_current(path, file["compile"]):
        run([file["compile"], "hash:" + path])


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
    return [path for path in paths if os.path.exists(path) and since < os.stat(path).st_ctime <= now]


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
    files = module.params["files"]
    for entry in files:
        entry["secret"] = entry["content"] is None
        if entry["secret"]:
            entry["content"] = entry["secret_content"]
    directories = module.params["directories"]
    wrong = [entry for entry in files if differs(entry)]
    missing = [entry for entry in directories if not os.path.isdir(entry["path"])]
    misowned = [entry for entry in directories + files if drifted(entry)]
    replaced = [entry["path"] for entry in missing + wrong + [entry for entry in misowned if entry not in wrong]]
    installed = os.path.isdir(module.params["directory"])
    result = {"changed": bool(replaced), "replaced": replaced, "installed": installed, "outdated": []}
    if module._diff:
        result["diff"] = [
            {
                "before_header": entry["path"],
                "after_header": entry["path"],
                "before": "" if entry["secret"] else read(entry["path"]) or "",
                "after": "" if entry["secret"] else entry["content"],
            }
            for entry in wrong
        ]
    if module.check_mode and not installed:
        module.exit_json(**result)
    if not installed:
        module.fail_json(msg=f"{module.params['directory']} is missing. Expected: the package that brings it. Next: install it.")
    try:
        if not module.check_mode:
            # Before the check, which complains of the live files' modes too.
            for entry in misowned:
                set_attributes(entry)
        if wrong:
            check(module.params["directory"], files, module.params["checks"])
        if not module.check_mode:
            for entry in missing:
                os.makedirs(entry["path"], mode=0o700)
                set_attributes(entry)
            for entry in wrong:
                replace(entry)
    except Refused as refused:
        module.fail_json(msg=f"The new configuration was refused; the live files are as they were. {refused}")
    except OSError as error:
        module.fail_json(msg=f"The files could not be replaced: {error}. Next: repair that and run again.")
    if module.params["unit"]:
        result["outdated"] = outdated(module.params["unit"], [entry["path"] for entry in files] + module.params["reads"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
