"""The command line and its demonstration. Needs typer, so nothing else imports from here."""

from __future__ import annotations
