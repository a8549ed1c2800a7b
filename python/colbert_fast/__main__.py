"""The console script, also ``python -m colbert_fast``: says so in one line if typer is missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        import typer  # noqa: F401
    except ImportError:
        sys.exit('colbert-fast: the command line needs typer: run  pip install "colbert-fast[cli]"')
    from colbert_fast.cli.commands import app

    app(prog_name="colbert-fast")


if __name__ == "__main__":
    main()
