#!/usr/bin/python
# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""Keep the host's firewall rules, on disk and in the kernel, as given. Runs on the server, standard library only."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: nftables_rules
short_description: Keep /etc/nftables.conf and the running rules as given, and never lock yourself out
description:
  - The rules are checked by C(nft) before they replace the old ones.
  - The running table is compared with what the file gives when it is loaded into an empty network namespace, so that a
    flushed or edited table is noticed and loaded again.
  - Refuses rules that would not let in the SSH connection over which it runs.
options:
  content:
    description: The file's whole content, which must replace O(table) and touch no other.
    type: str
    required: true
  table: {description: Family and name of the table that it makes., type: str, required: true}
  allow:
    description: What the rules let in; used to judge the SSH connection.
    type: list
    elements: dict
    required: true
    suboptions:
      port: {description: TCP port., type: int, required: true}
      sources: {description: IPv4 and IPv6 CIDRs., type: list, elements: str, required: true}
      name: {description: Name of the row., type: str}
  path: {description: The file., type: path, default: /etc/nftables.conf}
author: [Gatepost contributors]
"""

EXAMPLES = r"""
- name: The firewall lets in SSH
  nftables_rules:
    content: "{{ lookup('ansible.builtin.template', 'etc/nftables.conf.j2') }}"
    table: inet filter
    allow: [{port: 22, sources: ["192.0.2.0/24"]}]
"""

RETURN = r"""
loaded:
  description: Whether the running rules differed and were loaded again.
  type: bool
  returned: always
installed:
  description: Whether nft is there; false in check mode alone, on a host that has not got the package yet.
  type: bool
  returned: always
"""


def ssh_connection():
    """Return (client address, server port) of the SSH connection that started this process, or None.

    sudo(8) drops SSH_CONNECTION, so the parents' environments are asked, up to sshd's child.
    """
    process = os.getpid()
    while process > 1:
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            pairs = dict(pair.split(b"=", 1) for pair in environment if b"=" in pair)
            # proc_pid_stat(5): the name in brackets may hold anything; state and parent come after it.
            stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
            parent = int(stat.rpartition(")")[2].split()[1])
        except OSError:
            return None
        if b"SSH_CONNECTION" in pairs:
            client, _, _, port = pairs[b"SSH_CONNECTION"].decode().split()
            address = ipaddress.ip_address(client.partition("%")[0])
            return getattr(address, "ipv4_mapped", None) or address, int(port)
        process = parent
    return None


def mistakes(allow):
    """Return what is wrong with the rows, as sentences."""
    found = []
    for row in allow:
        for source in row["sources"]:
            try:
                if "/" not in source:
                    raise ValueError("no prefix length")
                ipaddress.ip_network(source)
            except ValueError as error:
                found.append(
                    f"Port {row['port']}: source {source} is not a CIDR ({error}). "
                    "Expected: such as 203.0.113.0/24 or 2001:db8::/32. Next: correct the sources of that port."
                )
    return found


def locked_out(allow):
    """Return why the rules would cut off this SSH connection, or an empty string."""
    connection = ssh_connection()
    if connection is None:
        return ""
    client, port = connection
    for row in allow:
        if row["port"] == port and any(client in ipaddress.ip_network(source) for source in row["sources"]):
            return ""
    return (
        f"This SSH connection comes from {client} to port {port}, which the new rules would not let in. "
        f"Expected: a row of firewall_allow with port {port} and a source that holds {client}. "
        "Next: add it (playbooks/site.yml takes it from ssh_sources and mail_ssh_port). Nothing was changed."
    )


def run(*command):
    """Return the finished command."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def rules(nft, table, path=None):
    """Return the table as nft prints it: the running one, or the one that the file gives in an empty namespace."""
    if path is None:
        return run(nft, "-s", "list", "table", *table).stdout
    done = run(
        "unshare", "--net", "sh", "-c", '"$0" -f "$1" && shift && exec "$0" -s list table "$@"', nft, path, *table
    )
    return done.stdout if done.returncode == 0 else None


def main():
    """Run the module."""
    row = {
        "port": {"type": "int", "required": True},
        "sources": {"type": "list", "elements": "str", "required": True},
        "name": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "content": {"type": "str", "required": True},
            "table": {"type": "str", "required": True},
            "allow": {"type": "list", "elements": "dict", "required": True, "options": row},
            "path": {"type": "path", "default": "/etc/nftables.conf"},
        },
        supports_check_mode=True,
    )
    path, content = Path(module.params["path"]), module.params["content"]
    table = module.params["table"].split()
    wrong = mistakes(module.params["allow"])
    lockout = "" if wrong else locked_out(module.params["allow"])
    if wrong or lockout:
        module.fail_json(msg=" ".join(wrong) or lockout)

    try:
        before = path.read_text(encoding="utf-8", errors="surrogateescape")
        status = path.stat()
        attributes = (status.st_uid, status.st_gid, status.st_mode & 0o7777)
    except FileNotFoundError:
        before, attributes = "", None
    file_differs = before != content or attributes != (0, 0, 0o755)
    diff = {"before_header": str(path), "after_header": str(path), "before": before, "after": content}

    nft = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if nft is None:
        if module.check_mode:
            module.exit_json(changed=True, loaded=True, installed=False, diff=diff)
        module.fail_json(msg="nft is not installed. Expected: the package nftables. Next: install it.")

    handle, candidate = tempfile.mkstemp(prefix=".nftables.", dir=path.parent)
    candidate = Path(candidate)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), 0o755)
            stream.flush()
            os.fsync(stream.fileno())
        checked = run(nft, "-c", "-f", candidate)
        if checked.returncode != 0 or checked.stderr:
            module.fail_json(msg=f"nft refused the new rules and nothing was changed: {checked.stderr.strip()}")
        running, wanted = rules(nft, table), rules(nft, table, candidate)
        if wanted is None:
            module.warn("No network namespace can be made here, so that edits of the running rules go unnoticed.")
            wanted = running if not file_differs else ""
        loaded = not running or running != wanted
        if not module.check_mode:
            if loaded:
                done = run(nft, "-f", candidate)
                if done.returncode != 0:
                    module.fail_json(msg=f"nft could not load the new rules; the old ones stay: {done.stderr.strip()}")
            if file_differs:
                candidate.rename(path)
    finally:
        candidate.unlink(missing_ok=True)
    module.exit_json(changed=file_differs or loaded, loaded=loaded, installed=True, diff=diff)


if __name__ == "__main__":
    main()
