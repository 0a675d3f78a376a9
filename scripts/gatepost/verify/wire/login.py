"""Logging in the three ways that mail clients use: AUTH PLAIN with and without an initial response, AUTH LOGIN."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from gatepost.verify.model import Account, Line
from gatepost.verify.wire.probe import Probe, Site
from gatepost.verify.wire.session import Answer, Ended, Reply, Session, WireError, plain

LOGIN_SECONDS = 20.0  # a server may delay, and its password hash may be costly


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to log in, and the reply that ended it."""

    way: str
    answer: Answer
    transcript: tuple[Line, ...]


def _initial(session: Session, account: Account) -> Answer:
    return session.login(account)


def _prompted(session: Session, account: Account) -> Answer:
    reply = session.command("AUTH PLAIN")
    return session.command(plain(account.address, account.password), LOGIN_SECONDS) if reply.code == 334 else reply


def _login(session: Session, account: Account) -> Answer:
    reply = session.command("AUTH LOGIN")
    for secret in (account.address, account.password):
        if reply.code != 334:
            break
        reply = session.command(base64.b64encode(secret.encode()).decode(), LOGIN_SECONDS)
    return reply


WAYS: tuple[tuple[str, Callable[[Session, Account], Answer]], ...] = (
    ("AUTH PLAIN with initial response", _initial),
    ("AUTH PLAIN, then the response", _prompted),
    ("AUTH LOGIN", _login),
)


def _logins(site: Site) -> tuple[Attempt, ...]:
    """Log in as the first account: AUTH PLAIN with an initial response, AUTH PLAIN without, AUTH LOGIN."""
    attempts = []
    for way, log_in in WAYS:
        with Session(site) as session:
            session.open(verify=not site.target.lab)
            try:
                answer = log_in(session, site.target.accounts[0])
            except WireError as error:
                answer = Ended(error.failure, error.detail)
            attempts.append(Attempt(way, answer, session.transcript))
        if isinstance(answer, Reply) and answer.code == 535:
            break  # the other ways would be two more failed logins, for the same answer
    return tuple(attempts)


LOGINS = Probe("logins", _logins, account=0, once=True)
