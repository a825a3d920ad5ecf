"""How much each parameter of a search mattered for validation AUC, by PED-ANOVA.

Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces" (IJCAI 2023), as
Optuna has it: how far the distribution of a parameter among the best trials is from that among all.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import pandas as pd

from recsys_embed.search.contenders import SAMPLED
from recsys_embed.search.table import object_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ENOUGH = 20
"""Complete trials of a method below which nothing is said."""
BEST = 0.3
"""The share of a method's complete trials that are its best ones. A tenth, Optuna's default, is two or three trials."""
_SHARE = "share."


def importances(search: pd.DataFrame) -> tuple[dict[str, dict[str, float]], str]:
    """Of each sampled method, the parameters by falling importance, which sum to 1; and why some or all are missing.

    Args:
        search: rows of ``search.csv``.
    """
    complete = search[search["status"] == "ok"]
    sampled = {name: complete[complete["method"] == name] for name in SAMPLED if (search["method"] == name).any()}
    few = [f"{name} {len(mine)}" for name, mine in sampled.items() if len(mine) < ENOUGH]
    why = f"fewer than {ENOUGH} complete trials say little: {', '.join(few)}" if few else ""
    wanted = {name: mine for name, mine in sampled.items() if len(mine) >= ENOUGH}
    if wanted and not _has_optuna():
        return {}, "Optuna 4.7 or newer is not installed"
    return {name: _of(mine) for name, mine in wanted.items()}, why


def parameter_name(name: str, vocabularies: Collection[str]) -> str:
    """A parameter in words.

    >>> parameter_name("share.user.2", ["user"]), parameter_name("share.a.2", ["a.2"]), parameter_name("tables_lr", [])
    ('width of user, block 2', 'width of a.2', 'tables lr')
    """
    kind, dot, rest = name.partition(".")
    if not dot or kind not in ("share", "strategy"):
        return name.replace("_", " ")
    what = "width" if kind == "share" else "strategy"
    block = re.fullmatch(r"(.+)\.(\d+)", rest)
    if kind == "share" and rest not in vocabularies and block and block[1] in vocabularies:
        rest = f"{block[1]}, block {block[2]}"
    return f"{what} of {rest}"


def _has_optuna() -> bool:
    try:
        from optuna.importance import PedAnovaImportanceEvaluator

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental before 5
            PedAnovaImportanceEvaluator(target_quantile=BEST)
    except (ImportError, TypeError):
        return False
    return True


def _of(trials: pd.DataFrame) -> dict[str, float]:
    """The importances of one method's complete trials."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    drawn = [object_of(text) for text in trials["params"]]
    names = sorted(set.intersection(*(set(one) for one in drawn)))
    spaces = {name: _space(name, [one[name] for one in drawn]) for name in names}
    known = {name: space for name, space in spaces.items() if space is not None and not space.single()}
    if not known:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="maximize")
            study.add_trials(
                optuna.trial.create_trial(
                    params={name: one[name] for name in known}, distributions=known, value=float(auc)
                )
                for one, auc in zip(drawn, trials["val_auc"], strict=True)
            )
            found = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST), params=list(known)
            )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _space(name: str, values: list[Any]) -> BaseDistribution | None:
    """What a parameter was drawn from: shares from 0 to 1, other numbers by their order of magnitude; None for numbers
    mixed with words, which nothing draws."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, str) for value in values):
        return CategoricalDistribution(sorted(set(values)))
    if any(isinstance(value, str) for value in values):
        return None
    low, high = min(values), max(values)
    if name.startswith(_SHARE):
        low, high = min(low, 0.0), max(high, 1.0)
    return FloatDistribution(low, high, log=low > 0)
