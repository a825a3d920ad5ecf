"""Swap the embeddings of a user's own model for compressed ones, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import nn

from recsys_embed.budget import ByteBudget
from recsys_embed.config import StrategyNode
from recsys_embed.embedding import Embedding, EmbeddingBag
from recsys_embed.errors import ConfigError


def swap_embeddings(
    model: nn.Module,
    *,
    strategy: str | StrategyNode | Mapping[str, Any] = "unified",
    budget: int | float | str | ByteBudget,
    min_rows: int = 10_000,
    **options: Any,
) -> pd.DataFrame:
    """Replace every ``nn.Embedding`` and ``nn.EmbeddingBag`` with at least ``min_rows`` rows by a compressed one.

    The budget is for all of them together: each keeps the same fraction of its bytes, and is compressed on its own.
    Weights start afresh. Nothing is changed if anything is refused.

    Args:
        model: changed in place; itself no embedding.
        strategy: as for :class:`EmbeddingLayer`; patterns match the names of the modules.
        budget: bytes of the serving form of the new tables.
        min_rows: smaller tables stay as they are.
        options: further options of :class:`EmbeddingLayer`.

    Returns:
        What was changed: columns ``module``, ``rows``, ``dim``, ``bytes_before``, ``bytes_after``.

    Raises:
        ConfigError: nothing to swap, or an embedding whose weights are tied, or that uses ``padding_idx``,
            ``max_norm``, ``scale_grad_by_freq`` or another mode than sum and mean; named.
        BudgetError: the budget is below what the strategy needs.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Embedding, nn.EmbeddingBag) and module.num_embeddings >= min_rows
    }
    if not found:
        raise ConfigError(f"no nn.Embedding or nn.EmbeddingBag has {min_rows} rows or more")
    for name, module in found.items():
        _refuse(model, name, module)
    full = sum(module.num_embeddings * module.embedding_dim * 4 for module in found.values())
    kept = ByteBudget.parse(budget).resolve(full_bytes=full) / full
    made: dict[str, Embedding | EmbeddingBag] = {}
    for name, module in found.items():
        share = int(kept * module.num_embeddings * module.embedding_dim * 4)
        given = {"strategy": _for_module(strategy, name), "budget": share, **options}
        if isinstance(module, nn.EmbeddingBag):
            made[name] = EmbeddingBag(module.num_embeddings, module.embedding_dim, mode=module.mode, name=name, **given)
        else:
            made[name] = Embedding(module.num_embeddings, module.embedding_dim, name=name, **given)
        made[name].to(module.weight.device)
    lines = []
    for name, new in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
        after = new.layer.plan.serve_bytes
        lines.append((name, new.num_embeddings, new.embedding_dim, new.layer.plan.full_bytes, after))
    return pd.DataFrame(lines, columns=["module", "rows", "dim", "bytes_before", "bytes_after"])


def _for_module(strategy: Any, name: str) -> Any:
    """Only the pattern that applies to this module: the others match other modules."""
    from recsys_embed.layer import parse_strategy

    if not isinstance(strategy, Mapping):
        return strategy
    from fnmatch import fnmatchcase

    patterns = parse_strategy(strategy)
    for pattern, config in patterns.items():
        if fnmatchcase(name, pattern):
            return config
    raise ConfigError(f"no strategy for module {name!r}: add a pattern '*'", path="embedding.strategy")


def _refuse(model: nn.Module, name: str, module: nn.Embedding | nn.EmbeddingBag) -> None:
    if name == "":
        raise ConfigError("the model is itself an embedding: build recsys_embed.Embedding in its place")
    owners = [
        f"{owner}.{key}" if owner else key
        for owner, other in model.named_modules(remove_duplicate=False)
        for key, parameter in other.named_parameters(recurse=False, remove_duplicate=False)
        if parameter is module.weight
    ]
    if len(owners) > 1:
        raise ConfigError(f"{name!r} shares its weights ({', '.join(owners)}): tied weights cannot be swapped")
    for option, harmless in (("padding_idx", None), ("max_norm", None), ("scale_grad_by_freq", False)):
        if getattr(module, option) != harmless:
            raise ConfigError(f"{name!r} uses {option} = {getattr(module, option)}, which a swap would drop")
    if isinstance(module, nn.EmbeddingBag) and (module.mode not in ("sum", "mean") or module.include_last_offset):
        raise ConfigError(f"{name!r} uses mode {module.mode!r} or include_last_offset, which a swap would drop")
