"""Chapter 2 of the policy, certificates (CRT)."""

from __future__ import annotations

from gatepost.verify.model import Finding
from gatepost.verify.registry import Requirement, Seen, failed
from gatepost.verify.wire.probe import Probe

CERTIFICATE: Probe[None] = Probe("certificate", lambda site: None)


def chain(seen: Seen) -> Finding:
    """CRT-01."""
    return failed("")


def name(seen: Seen) -> Finding:
    """CRT-02."""
    return failed("")


REQUIREMENTS: tuple[Requirement, ...] = ()
