"""What an environment is: its settings file, loaded, checked and with every default filled in.

An environment is a directory (`inventory/` by default). Paths in its `settings.yml` are relative to that directory.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gatepost import documents
from gatepost.errors import GatepostError

FILE_NAME = "settings.yml"


@dataclass(frozen=True, slots=True)
class User:
    """A mailbox. Exactly one of `password_file` and `password_hash` is set."""

    address: str
    password_file: Path | None = None  # one line; the hash is made from it
    password_hash: str | None = None  # in Dovecot's form: {SCHEME}…
    aliases: tuple[str, ...] = ()  # also delivered here, and may be sent as
    may_send_as: tuple[str, ...] = ()  # further envelope senders allowed to this login
    is_probe: bool = False  # one of the two test accounts that `verify_accounts` adds


@dataclass(frozen=True, slots=True)
class Certificate:
    """Where the server certificate comes from; the three paths belong to source *files*."""

    source: Literal["lab_ca", "files"] = "lab_ca"
    chain_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None  # for clients; None: they trust the CA anyway


@dataclass(frozen=True, slots=True)
class Local:
    """The lab on this computer."""

    release: int = 13  # Debian release
    image_max_age_days: int = 30


@dataclass(frozen=True, slots=True)
class Existing:
    """A server that stands already."""

    address: str
    ssh_user: str = "root"
    ssh_port: int = 22
    ssh_key_file: Path | None = None  # None: what ssh uses anyway
    ssh_host_key: str | None = None  # a public key, or its SHA256:… fingerprint


@dataclass(frozen=True, slots=True)
class Settings:
    """One environment's settings. `users` includes the test accounts where `verify_accounts` asks for them."""

    directory: Path  # absolute
    cloud: Literal["local", "existing"]
    hostname: str
    domains: tuple[str, ...]
    users: tuple[User, ...]
    postmaster: str
    verify_accounts: bool
    outside_domain: str
    certificate: Certificate
    ssh_sources: tuple[str, ...]
    local: Local
    existing: Existing | None

    @property
    def probes(self) -> tuple[User, ...]:
        """Return the test accounts."""
        return tuple(user for user in self.users if user.is_probe)

    @property
    def secrets(self) -> Path:
        """Return the directory of keys and passwords (mode 0700)."""
        return self.directory / "secrets"

    @property
    def hosts_file(self) -> Path:
        """Return the generated Ansible inventory."""
        return self.directory / "hosts.yml"

    @property
    def known_hosts(self) -> Path:
        """Return the known_hosts file of this environment alone."""
        return self.secrets / "known_hosts"

    @property
    def ca_dir(self) -> Path:
        """Return where the environment's own CA lies (ca.pem, ca.key)."""
        return self.secrets / "ca"

    @property
    def client_ca_file(self) -> Path | None:
        """Return the CA file that clients need, or None when the CA is a public one."""
        return self.ca_dir / "ca.pem" if self.certificate.source == "lab_ca" else self.certificate.ca_file

    @property
    def terraform_dir(self) -> Path:
        """Return where Terraform's variables, data and state lie."""
        return self.directory / "terraform"

    @property
    def reports(self) -> Path:
        """Return where reports of verifications lie."""
        return self.directory / "reports"

    @property
    def logs(self) -> Path:
        """Return where logs of runs lie."""
        return self.directory / "logs"


def load(directory: Path) -> Settings:
    """Read `settings.yml` of an environment.

    Raises GatepostError that names file, line and key, with what was expected.
    """
    directory = directory.resolve()
    path = directory / FILE_NAME
    document, _raw = documents.read(
        path,
        "settings",
        what="the settings",
        next_step="`make deploy` makes a new environment from inventory.example/; INVENTORY= names another directory.",
    )
    domains = tuple(document.get("domains", ["example.test"]))
    outside_domain = document.get("outside_domain", "remote.test")
    verify_accounts = document.get("verify_accounts", True)
    users = tuple(_user(path, number, row, domains) for number, row in enumerate(document.get("users") or [], start=1))
    if verify_accounts:
        users += _probes(directory, domains[0])
    if not users:
        raise GatepostError(
            f"{path}: no mailbox: users is empty and verify_accounts is false",
            expected="at least one mailbox, since mail to postmaster@ must be read by someone (RFC 5321 §4.5.1)",
            next_step="Add a user, or set verify_accounts: true.",
        )
    _check_names(path, users)
    settings = Settings(
        directory=directory,
        cloud=document.get("cloud", "local"),
        hostname=document.get("hostname", "mx.example.test"),
        domains=domains,
        users=users,
        postmaster=document.get("postmaster", users[0].address),
        verify_accounts=verify_accounts,
        outside_domain=outside_domain,
        certificate=_certificate(path, document.get("certificate") or {}),
        ssh_sources=tuple(
            str(ipaddress.ip_network(source)) for source in document.get("ssh_sources", ["0.0.0.0/0", "::/0"])
        ),
        local=Local(**(document.get("local") or {})),
        existing=_existing(directory, document.get("existing")),
    )
    _check_together(path, settings)
    return settings


def _user(path: Path, number: int, row: dict[str, Any], domains: tuple[str, ...]) -> User:
    address = row["address"]
    where = f"{path}: users[{number}] ({address})"
    if ("password_file" in row) == ("password_hash" in row):
        both = "password_file" in row
        raise GatepostError(
            f"{where}: {'both password_file and password_hash' if both else 'no password'}",
            expected="one of password_file and password_hash",
            next_step="Remove one of them."
            if both
            else f"Write it into a file that only you can read; then password_file: secrets/{address}.password",
        )
    user = User(
        address=address,
        password_file=_path(path.parent, row.get("password_file")),
        password_hash=row.get("password_hash"),
        aliases=tuple(row.get("aliases") or ()),
        may_send_as=tuple(row.get("may_send_as") or ()),
    )
    for field, names in (("address", (address,)), ("aliases", user.aliases), ("may_send_as", user.may_send_as)):
        for name in names:
            if name.rpartition("@")[2] not in domains:
                raise GatepostError(
                    f"{where}: {field}: {name} is in a domain that is not hosted here",
                    expected="an address in one of " + ", ".join(domains),
                    next_step=f"Add {name.rpartition('@')[2]} to domains, or change the address.",
                )
    return user


def _probes(directory: Path, domain: str) -> tuple[User, ...]:
    def probe(name: str, aliases: tuple[str, ...] = ()) -> User:
        address = f"gatepost-probe-{name}@{domain}"
        return User(address, directory / f"secrets/accounts/{address}.password", aliases=aliases, is_probe=True)

    return probe("a", (f"gatepost-probe-alias@{domain}",)), probe("b")


def _check_names(path: Path, users: tuple[User, ...]) -> None:
    owner: dict[str, str] = {}
    for user in users:
        if user.address in owner:
            reserved = next(u for u in users if u.address == user.address) is not user and user.is_probe
            raise GatepostError(
                f"{path}: users: {user.address} stands there twice"
                + (", once as the test account that verify_accounts adds" if reserved else ""),
                expected="every address once",
                next_step="Remove or rename one of them.",
            )
        owner[user.address] = user.address
    for user in users:
        for alias in user.aliases:
            if alias in owner:
                other = owner[alias]
                if other == user.address == alias:
                    found = "is an alias of itself, so mail to it would loop"
                elif other == alias:
                    found = f"is an alias of {user.address} and a mailbox of its own"
                    if user.address in next(u for u in users if u.address == other).aliases:
                        found = f"and {user.address} are aliases of each other, so mail to them would loop"
                else:
                    found = f"is an alias of both {other} and {user.address}"
                raise GatepostError(
                    f"{path}: users: {alias} {found}",
                    expected="every address to be one mailbox, or an alias of one mailbox",
                    next_step=f"Remove {alias} from the aliases of {user.address}, or rename it.",
                )
            owner[alias] = user.address


def _certificate(path: Path, row: dict[str, Any]) -> Certificate:
    certificate = Certificate(
        source=row.get("source", "lab_ca"),
        chain_file=_path(path.parent, row.get("chain_file")),
        key_file=_path(path.parent, row.get("key_file")),
        ca_file=_path(path.parent, row.get("ca_file")),
    )
    if certificate.source == "files":
        for key in ("chain_file", "key_file"):
            if key not in row:
                raise GatepostError(
                    f"{path}: certificate: source is files, and {key} is missing",
                    expected="chain_file and key_file, both in PEM",
                    next_step=f"Add {key}, or set source: lab_ca.",
                )
    elif set(row) - {"source"}:
        given = ", ".join(sorted(set(row) - {"source"}))
        raise GatepostError(
            f"{path}: certificate: {given} given, and source is {certificate.source}",
            expected="these paths only with source: files",
            next_step="Set source: files, or remove them.",
        )
    return certificate


def _existing(directory: Path, row: dict[str, Any] | None) -> Existing | None:
    if row is None:
        return None
    return Existing(**{**row, "ssh_key_file": _path(directory, row.get("ssh_key_file"))})


def _check_together(path: Path, settings: Settings) -> None:
    if settings.cloud == "existing" and settings.existing is None:
        raise GatepostError(
            f"{path}: cloud is existing, and there is no `existing:` that says which server",
            expected="existing: {address: …}",
            next_step="Add it, or set cloud: local.",
        )
    for domain in settings.domains:
        if _under(settings.outside_domain, domain) or _under(domain, settings.outside_domain):
            raise GatepostError(
                f"{path}: outside_domain {settings.outside_domain} overlaps with {domain}, which is hosted here",
                expected="a domain that has nothing to do with those in domains",
                next_step="Choose another, such as remote.test.",
            )
    # In the lab the DNS is ours: its resolver answers for the hosted domains. Elsewhere another zone may hold the name.
    if settings.cloud == "local" and not any(_under(settings.hostname, domain) for domain in settings.domains):
        raise GatepostError(
            f"{path}: hostname {settings.hostname} is not under a domain hosted here ({', '.join(settings.domains)})",
            expected="in the lab, a name under one of domains, since the lab's resolver answers for these",
            next_step=f"Write mx.{settings.domains[0]}, or add the parent domain of {settings.hostname} to domains.",
        )
    addresses = {user.address for user in settings.users} | {a for user in settings.users for a in user.aliases}
    if settings.postmaster not in addresses:
        raise GatepostError(
            f"{path}: postmaster {settings.postmaster} is neither a mailbox nor an alias here",
            expected="an address of users, or one of their aliases",
            next_step="Mail to postmaster@ must reach a person (RFC 5321 §4.5.1): add a user, or name one that exists.",
        )


def _under(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


def _path(directory: Path, value: str | None) -> Path | None:
    return None if value is None else directory / Path(value).expanduser()
