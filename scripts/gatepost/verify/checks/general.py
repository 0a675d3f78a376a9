"""Chapter 1 of the policy: what every listener must do (GEN)."""

from __future__ import annotations

from gatepost.verify.checks.answers import refusal
from gatepost.verify.model import Finding
from gatepost.verify.registry import Need, Requirement, Scope, Seen
from gatepost.verify.wire.probe import Case, Site, case, dialogue


def _verbs(site: Site) -> tuple[Case, ...]:
    return (case("ETRN", f"ETRN {site.domain}"),)


VERBS = dialogue("verbs", _verbs)


def etrn(seen: Seen) -> Finding:
    """GEN-CMD-03: hiding the keyword alone does not disable the verb."""
    return refusal(seen[VERBS]["ETRN"])


REQUIREMENTS = (
    Requirement(
        id="GEN-CMD-03",
        scope=Scope.ALL,
        title="ETRN is refused",
        expected="a 5xx reply (554 5.7.1)",
        remedy="smtpd_etrn_restrictions = reject. Hiding the keyword alone leaves the verb working.",
        source="RFC 1985",
        probes=(VERBS,),
        check=etrn,
        needs=Need.DOMAIN,
    ),
)
