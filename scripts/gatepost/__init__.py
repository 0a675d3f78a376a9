"""Gatepost: stand up a mail server and prove that its doors are right."""

__version__ = "0.1.0"
