"""Chapter 2 of the policy, handshakes (TLS)."""

from __future__ import annotations

from gatepost.verify.registry import Requirement, Seen
from gatepost.verify.wire.probe import Failed, Probe

VERSIONS: Probe[tuple[str, ...]] = Probe("tls-versions", lambda site: ())


def has_tls(seen: Seen) -> bool:
    """Whether a TLS 1.2 or 1.3 handshake succeeded here: what a negative check needs to mean anything (VER-03)."""
    return not isinstance(seen.attempt(VERSIONS), Failed)


REQUIREMENTS: tuple[Requirement, ...] = ()
