"""How we know that the checks see: each mutant breaks one thing on a running server, and the right id must fail."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import make
from environments import Environment

HERE = Path(__file__).parent
CATALOGUE = yaml.safe_load((HERE / "mutants.yml").read_text())
PRELUDE = (HERE / "prelude.sh").read_text()
KEPT = "/etc/postfix /etc/dovecot /etc/aliases /etc/aliases.db /etc/nftables.conf /var/spool/postfix/etc"
CERTS = "/root/mutant-certs"
# What is restarted settles before it is judged: master serves at once, Dovecot when its sockets are there.
RESTART = {
    "dovecot": "systemctl restart dovecot; for _ in {1..50}; do test -S /var/spool/postfix/private/auth && break; "
    "sleep .1; done",
    "nftables": "systemctl restart nftables",
    "postfix": "systemctl restart postfix",
}

pytestmark = pytest.mark.lab


class Patient:
    """A server whose good state was kept, so that it can be broken and healed."""

    def __init__(self, server: Environment, directory: Path) -> None:
        self.server = server
        info = server.info
        make(directory, info["hostname"], Path(info["ca_file"]).parent)
        self.variables = "\n".join(
            (
                f"CERTS={CERTS}",
                f"DOMAIN={info['domains'][0]}",
                f"ACCOUNT={info['test_accounts'][0]['address']}",
                "OUTSIDE=remote.test",
                "KEY=$(postconf -xh smtpd_tls_chain_files | tr ', ' '\\n\\n' | head -n1)",
            )
        )
        files = "".join(f"cat > {CERTS}/{file.name} <<'EOF'\n{file.read_text()}EOF\n" for file in directory.iterdir())
        server.ssh(f"mkdir -pm 700 {CERTS}\n{files}tar -cpf /root/kept.tar --absolute-names {KEPT}")

    def break_it(self, run: str, restart: list[str]) -> None:
        script = f"{PRELUDE}\n{self.variables}\n{run}\n" + "\n".join(RESTART[name] for name in restart)
        self.server.ssh(script)

    def heal(self, restart: Collection[str] = tuple(RESTART)) -> None:
        """Put files, permissions and services back to what was kept; restart these, and what was stopped."""
        self.server.ssh(
            "key=$(tar -xOf /root/kept.tar --absolute-names /etc/postfix/main.cf | "
            "sed -n 's/^smtpd_tls_chain_files = //p')\n"
            "rm -rf /etc/postfix /etc/dovecot\ntar -xpf /root/kept.tar --absolute-names\nchmod 600 ${key%%[ ,]*}\n"
            "systemctl enable -q postfix dovecot nftables\nsystemctl reset-failed\nsystemctl restart nftables\n"
            + "\n".join(
                command if name in restart else f"systemctl is-active -q {name} || {{ {command}; }}"
                for name, command in RESTART.items()
            )
        )


@pytest.fixture(scope="module", params=["server13", pytest.param("server12", marks=pytest.mark.full)])
def patient(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    patient = Patient(request.getfixturevalue(request.param), tmp_path_factory.mktemp("certificates"))
    yield patient
    patient.heal()
    patient.server.ssh(f"rm -rf {CERTS} /root/kept.tar")


def _failed(report: dict[str, Any]) -> set[str]:
    """Return ID and ID@PORT of everything that failed."""
    failed = [result for result in report["results"] if result["verdict"] == "fail"]
    return {result["id"] for result in failed} | {f"{result['id']}@{result['port']}" for result in failed}


def _by(via: str) -> list[Any]:
    return [
        pytest.param(mutant, id=mutant["name"])
        for mutant in CATALOGUE["mutants"]
        if mutant.get("via", "network") == via
    ]


@pytest.mark.parametrize("mutant", _by("network"))
def test_the_network_shows(patient: Patient, mutant: dict[str, Any]) -> None:
    only = [word for id_ in mutant["breaks"] for word in ("--only", id_.partition("@")[0])]
    try:
        patient.break_it(mutant["run"], mutant["restart"])
        failed = _failed(patient.server.verify(*only))
        assert failed & set(mutant["breaks"]), f"failed: {sorted(failed)}"
    finally:
        patient.heal(mutant["restart"])


@pytest.mark.parametrize("mutant", _by("host"))
def test_the_host_shows(patient: Patient, mutant: dict[str, Any]) -> None:
    wanted = "|".join(id_.lower().replace("-", "_") for id_ in mutant["breaks"])
    try:
        patient.break_it(mutant["run"], mutant["restart"])
        said = patient.server.gatepost(
            "check", "--", "-q", "--no-header", "-k", wanted.replace("|", " or "), check=False
        )
        assert re.search(rf"^FAILED .*::test_({wanted})_", said.stdout, re.MULTILINE), said.stdout
    finally:
        patient.heal(mutant["restart"])


@pytest.mark.parametrize("change", [pytest.param(row, id=row["name"]) for row in CATALOGUE["equivalents"]])
def test_a_harmless_change_raises_no_alarm(patient: Patient, change: dict[str, Any]) -> None:
    try:
        patient.break_it(change["run"], ["postfix"])
        report = patient.server.verify()
        assert (report["exit_code"], _failed(report)) == (0, set())
    finally:
        patient.heal(["postfix"])


def test_the_healed_server_passes_everything(patient: Patient) -> None:
    report = patient.server.verify()
    assert (report["exit_code"], _failed(report)) == (0, set())
    patient.server.gatepost("check")
