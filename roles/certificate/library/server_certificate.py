#!/usr/bin/python
# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""The server's half of the action plugin of the same name. Runs on the server, standard library and openssl(1) only."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: server_certificate
short_description: Keep a server's certificate and key in place
description:
  - The work is done on the controller, by the action plugin of the same name, which knows certificates; what reaches
    the server writes files, and makes a private key that never leaves it.
options:
  hostname: {description: Fully qualified name that the certificate must be for., type: str, required: true}
  source:
    description: V(lab_ca) signs with a CA of our own; V(files) takes a certificate and a key that you have.
    type: str
    required: true
    choices: [lab_ca, files]
  directory: {description: Directory on the server., type: path, required: true}
  chain_file: {description: "For V(files), certificate and intermediates on the controller.", type: str, default: ""}
  key_file: {description: "For V(files), private key on the controller.", type: str, default: ""}
  ca_dir:
    description: For V(lab_ca), the CA's directory on the controller, made on first use.
    type: str
    default: ""
author: [Gatepost contributors]
"""

EXAMPLES = r"""
- name: The certificate is in place
  server_certificate:
    hostname: mx.example.test
    source: lab_ca
    ca_dir: /home/me/inventory/secrets/ca
    directory: /etc/ssl/gatepost
"""

RETURN = r"""
reason:
  description: Why the certificate was renewed or written; empty when it was not.
  type: str
  returned: always
"""


def read(path):
    """Return the file's text, or an empty string where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def in_order(path, mode):
    """Tell whether the path belongs to root and has the mode."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, mode)


def openssl(*words):
    """Return openssl's output, or an empty string when it failed."""
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def write(path, content, mode):
    """Rename a complete file over the old one."""
    handle, temporary = tempfile.mkstemp(prefix=".new.", dir=path.parent)
    temporary = Path(temporary)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink()
        raise


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "request": {"type": "bool", "default": False},
            "chain": {"type": "str", "default": ""},
            "key": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    key_path, chain_path = directory / "privkey.pem", directory / "fullchain.pem"
    wanted = ((directory, 0o700), (key_path, 0o600), (chain_path, 0o644))
    drifted = [path for path, mode in wanted if path.exists() and not in_order(path, mode)]
    replaced = []

    if not module.check_mode:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True)
            replaced.append(directory)
        for path, mode in wanted:
            if path in drifted:
                os.chown(path, 0, 0)
                path.chmod(mode)
        if module.params["request"] and not openssl("pkey", "-in", str(key_path), "-pubout"):
            made = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
            if not made:
                module.fail_json(msg="openssl could not make a key. Expected: the package openssl. Next: install it.")
            write(key_path, made, 0o600)
            replaced.append(key_path)
    # The key first: whoever reads the pair between the two renames gets a mismatch for an instant, and not for good.
    for path, mode, content in ((key_path, 0o600, module.params["key"]), (chain_path, 0o644, module.params["chain"])):
        if content and read(path) != content:
            if not module.check_mode:
                write(path, content, mode)
            replaced.append(path)
    module.exit_json(
        changed=bool(drifted or replaced),
        replaced=[str(path) for path in replaced + drifted],
        present=read(chain_path),
        csr=openssl("req", "-new", "-key", str(key_path), "-subj", "/CN=gatepost") if module.params["request"] else "",
    )


if __name__ == "__main__":
    main()
