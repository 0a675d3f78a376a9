#!/usr/bin/python
# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""See to it that Debian packages are installed. Runs on the server, standard library only."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: debian_packages
short_description: Install what is missing, and tell Debian's release, in one round trip
description:
  - The roles need to know two things of a host before they start, its release and whether their packages are there.
    C(setup) and C(apt) take a second of every run to answer; this takes a fifth of one.
  - Services are not started by the installation, so that they start once, with their own configuration.
  - In check mode it reports what it would install, also on a host whose package lists were never fetched.
options:
  names:
    description: Packages.
    type: list
    elements: str
    required: true
author: [Gatepost contributors]
"""

EXAMPLES = r"""
- name: Packages are installed
  debian_packages:
    names: [postfix, postfix-pcre]
"""

RETURN = r"""
installed:
  description: Packages that were, or in check mode would be, installed.
  type: list
  elements: str
  returned: always
ansible_facts:
  description: C(distribution) and C(distribution_major_version), as C(setup) gives them.
  type: dict
  returned: always
"""

LISTS = Path("/var/lib/apt/lists")
LOCK = Path("/run/lock/gatepost-packages")
POLICY = Path("/usr/sbin/policy-rc.d")
# 101 is "action forbidden by policy" (invoke-rc.d(8)).
NO_START = "#!/bin/sh\n# gatepost: removed when the installation ends\nexit 101\n"
WAIT = ["-o", "DPkg::Lock::Timeout=120"]
APT = [
    "apt-get",
    "-qq",
    "-y",
    "--no-install-recommends",
    *WAIT,
    # Configuration files that were there before the package stay.
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Use-Pty=0",
]


def release():
    """Return os-release(5) as a dict."""
    pairs = {}
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, separator, value = line.strip().partition("=")
        if separator:
            pairs[key] = value.strip("\"'")
    return pairs


def missing(names):
    """Return the names that dpkg does not know as installed."""
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    present = {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in present]


def install(names):
    """Install, fetching the package lists first where there are none or where the old ones fail."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}

    def apt(*words):
        return subprocess.run(
            [*APT, *words], capture_output=True, text=True, errors="replace", env=environment, check=False
        )

    def update():
        return subprocess.run(
            ["apt-get", "-qq", *WAIT, "update"],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )

    fetched = not any("_Packages" in path.name for path in LISTS.iterdir())
    if fetched:
        updated = update()
    done = apt("install", *names)
    if done.returncode != 0 and not fetched:
        updated = update()
        done = apt("install", *names)
        fetched = True
    if done.returncode != 0:
        return "\n".join(
            part
            for part in (updated.stderr.strip() if fetched else "", done.stderr.strip() or done.stdout[-2000:])
            if part
        )
    return ""


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    found = release()
    facts = {
        "distribution": found.get("NAME", "").split(" ")[0],
        "distribution_major_version": found.get("VERSION_ID", "").split(".")[0],
    }
    if found.get("ID") != "debian":
        module.fail_json(
            msg=f"The host runs {found.get('PRETTY_NAME', 'an unknown system')}. Expected: Debian 12 or 13."
        )
    names = missing(module.params["names"])
    if names and not module.check_mode:
        # Ctrl-C ends Ansible here and leaves this module at work there: the next run waits until it has done.
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            names = missing(names)
            # One of ours that is there already was left by a run that was killed.
            ours = not POLICY.exists() or POLICY.read_text(errors="replace") == NO_START
            try:
                if ours:
                    POLICY.write_text(NO_START)
                    POLICY.chmod(0o755)
                failure = install(names) if names else ""
            finally:
                if ours:
                    POLICY.unlink()
        if failure:
            module.fail_json(
                msg=f"apt-get could not install {' '.join(names)}: {failure}\n"
                "Next: run apt-get update on the host, and see that it reaches its mirror."
            )
    module.exit_json(changed=bool(names), installed=names, ansible_facts=facts)


if __name__ == "__main__":
    main()
