"""``recsys-embed doctor``."""

from __future__ import annotations

from dataclasses import asdict

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json
from recsys_embed.cli.printing import print_json


def doctor(as_json: Json = False) -> None:
    """Versions, whether they fit each other, and the command that mends what does not."""
    from recsys_embed.doctor import diagnose, render

    with exit_codes():
        components = diagnose()
        if as_json:
            print_json([asdict(component) for component in components])
        else:
            print(render(components))
        if any(component.fails for component in components):
            raise SystemExit(2)
