"""Gatepost: stand up a mail server and prove that its doors are right."""

from datetime import UTC, datetime

__version__ = "0.1.0"
RELEASED = datetime(2026, 11, 24, tzinfo=UTC)  # a clock that shows an earlier day is wrong
