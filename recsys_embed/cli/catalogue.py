"""``recsys-embed strategies`` and ``recsys-embed models``: what there is to choose from."""

from __future__ import annotations

import inspect
import re
from typing import Any

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json
from recsys_embed.cli.printing import print_json, print_table


def strategies(as_json: Json = False) -> None:
    """The embedding strategies: paper, options, whether they take features without a vocabulary (raw hash) and new
    ids (`train --continue`), smallest size, when to use."""
    from recsys_embed.config import STRATEGIES
    from recsys_embed.embeddings import CLASSES

    with exit_codes():
        rows = [
            {
                "name": name,
                "what": _first_line(CLASSES[node]),
                "paper": CLASSES[node].paper,
                "options": _options_of(node),
                "raw_hash": CLASSES[node].takes_hashed,
                "new_ids": CLASSES[node].grows(),
                "needs": "a tables optimizer" if CLASSES[node].needs_tables_optimizer() else "nothing",
                "smallest": _first_line(CLASSES[node].least),
                "use": CLASSES[node].use,
            }
            for name, node in STRATEGIES.items()
        ]
        print_json(rows) if as_json else print_table(rows)


def models(as_json: Json = False) -> None:
    """The click-through-rate models."""
    from recsys_embed.config import DCNv2Config, DLRMConfig
    from recsys_embed.models import build_model

    with exit_codes():
        rows = []
        for node in (DCNv2Config, DLRMConfig):
            module = inspect.getmodule(type(build_model(node(), num_features=2, num_dense=1)))
            paper = re.search(r"arXiv:([\d.]+\d)", (module and module.__doc__) or "")
            rows.append(
                {
                    "name": node.model_fields["name"].default,
                    "what": _first_line(node),
                    "paper": paper[1] if paper else "",
                    "options": _options_of(node),
                }
            )
        print_json(rows) if as_json else print_table(rows)


def _first_line(cls: object) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _options_of(node: type[Any]) -> str:
    fields = node.model_fields
    return ", ".join(f"{name} = {field.default!r}" for name, field in fields.items() if name != "name")
