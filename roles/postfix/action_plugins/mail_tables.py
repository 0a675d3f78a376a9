# Copyright: Gatepost contributors
# MIT licence (see LICENSE)
"""Judge users, domains and listeners together, and make the address tables. Runs on the controller alone."""

from __future__ import annotations

import re

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# RFC 2142, RFC 5321 section 4.5.1; fbl is where feedback reports (RFC 5965) are commonly sent.
ROLE_NAMES = ("abuse", "fbl", "hostmaster", "mailer-daemon", "postmaster", "root")

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_FQDN = re.compile(rf"({_LABEL}\.)+{_LABEL}", re.IGNORECASE)
# What a Postfix table and Dovecot's passwd-file can hold without quoting.
_ADDRESS = re.compile(r"[^\s@:#,\"]+@[^\s@]+")


def mistakes(hostname, domains, users, postmaster, listeners):
    """Return what does not fit together, as sentences that say found, expected and next."""
    found = []

    def mistake(what, expected, next_step):
        found.append(f"{what} Expected: {expected} Next: {next_step}")

    for name in [hostname, *domains]:
        if not _FQDN.fullmatch(name) or len(name) > 253:
            mistake(
                f"{name!r} is no fully qualified name.",
                "such as mx.example.org.",
                "correct postfix_hostname or postfix_domains.",
            )
    if not domains:
        mistake("postfix_domains is empty.", "at least one domain.", "name the domains whose mail ends here.")
    if not _ADDRESS.fullmatch(postmaster):
        mistake(f"postfix_postmaster is {postmaster!r}.", "an address.", "name a mailbox that someone reads.")

    for row in listeners:
        if row["purpose"] == "relay" and row["tls"] == "implicit":
            mistake(
                f"Listener {row['name']} on port {row['port']} is a relay with implicit TLS.",
                "tls: starttls, since TLS must not be demanded of other servers (RFC 3207 section 4).",
                "correct the listener table.",
            )
        if not 0 < row["port"] < 65536:
            mistake(f"Listener {row['name']} has port {row['port']}.", "1 to 65535.", "correct the listener table.")
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", row["name"]):
            mistake(
                f"The listener on port {row['port']} is named {row['name']!r}.",
                "a letter, then letters, digits and hyphens.",
                "rename it.",
            )
    for field in ("port", "name"):
        values = [row[field] for row in listeners]
        for value in sorted({value for value in values if values.count(value) > 1}):
            mistake(f"The listener table has {field} {value} twice.", "each once.", "change or remove a row.")

    hosted = {domain.lower() for domain in domains}
    owners = {}
    for user in users:
        login = user["address"].lower()
        for address in [login, *map(str.lower, user["aliases"])]:
            if not _ADDRESS.fullmatch(address) or address.rpartition("@")[2] not in hosted:
                mistake(
                    f"{address!r} of user {login} is no address in a hosted domain.",
                    f"a name in one of {', '.join(sorted(hosted))}.",
                    "correct postfix_users or postfix_domains.",
                )
            if address in owners:
                mistake(
                    f"{address} belongs to both {owners[address]} and {login}.",
                    "one mailbox for each address.",
                    "remove it from one of the two; may_send_as lets another user send under it.",
                )
            owners[address] = login
        for address in user["may_send_as"]:
            if not _ADDRESS.fullmatch(address):
                mistake(f"{login} may send as {address!r}.", "an address.", "correct postfix_users.")
    return found


def tables(domains, users, postmaster):
    """Return (alias → mailbox, sender → logins); who receives an address may send under it."""
    mailboxes = {user["address"].lower() for user in users}
    aliases = {alias.lower(): user["address"].lower() for user in users for alias in user["aliases"]}
    for domain in domains:
        for name in ROLE_NAMES:
            address = f"{name}@{domain.lower()}"
            if address not in mailboxes:
                aliases.setdefault(address, postmaster.lower())
    logins = {}
    for user in users:
        for address in [user["address"], *user["may_send_as"]]:
            logins.setdefault(address.lower(), set()).add(user["address"].lower())
    for alias, mailbox in aliases.items():
        if mailbox in mailboxes:
            logins.setdefault(alias, set()).add(mailbox)
    return aliases, {address: sorted(owners) for address, owners in logins.items()}


class ActionModule(ActionBase):
    """Return the tables `aliases` and `sender_logins`, or fail with every mistake found."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp=None, task_vars=None):
        """Run the action."""
        result = super().run(tmp, task_vars)
        addresses = {"type": "list", "elements": "str", "default": []}
        _, options = self.validate_argument_spec(
            argument_spec={
                "hostname": {"type": "str", "required": True},
                "domains": {"type": "list", "elements": "str", "required": True},
                "postmaster": {"type": "str", "required": True},
                "listeners": {"type": "list", "elements": "dict", "required": True},
                "users": {
                    "type": "list",
                    "elements": "dict",
                    "required": True,
                    "options": {
                        "address": {"type": "str", "required": True},
                        "aliases": addresses,
                        "may_send_as": addresses,
                    },
                },
            }
        )
        found = mistakes(
            options["hostname"], options["domains"], options["users"], options["postmaster"], options["listeners"]
        )
        if found:
            raise AnsibleActionFail("\n".join(found))
        aliases, logins = tables(options["domains"], options["users"], options["postmaster"])
        result.update(changed=False, aliases=aliases, sender_logins=logins, role_names=list(ROLE_NAMES))
        return result
