"""Conditions of promotion: read word by word, and never run."""

from __future__ import annotations

import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed import ConfigError
from recsys_embed.promotion import METRICS, OPERATORS, Condition

NUMBERS = st.floats(0, 10, allow_nan=False).map(lambda x: round(x, 6))


@given(
    st.sampled_from(METRICS), st.sampled_from(sorted(OPERATORS)), NUMBERS, NUMBERS, NUMBERS,
    st.sampled_from(["champion", "champion + ", "champion-", ""]), st.sampled_from([" ", "  "]),
)  # fmt: skip
def test_a_comparison_is_what_python_says(
    metric: str, sign: str, new: float, old: float, number: float, form: str, space: str
) -> None:
    bound = {"champion": old, "champion + ": old + number, "champion-": old + -number, "": number}[form]
    text = space.join([metric, sign, form + ("" if form == "champion" else repr(number))])
    told = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}[sign](new, bound)
    assert Condition.parse(text).holds({metric: new}, {metric: old}) == told


def test_all_that_is_joined_has_to_hold() -> None:
    both = Condition.parse("val_auc >= champion - 0.001 and test_logloss < 0.4")
    old = {"val_auc": 0.8, "test_logloss": 9.0}
    assert both.holds({"val_auc": 0.7995, "test_logloss": 0.39}, old)
    assert not both.holds({"val_auc": 0.7985, "test_logloss": 0.39}, old)
    assert not both.holds({"val_auc": 0.7995, "test_logloss": 0.4}, old)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_was_not_measured_promotes_nobody(missing: float | None) -> None:
    for text in ("val_auc >= champion", "val_auc <= champion", "val_auc > 0.1", "val_auc < 0.9"):
        assert not Condition.parse(text).holds({"val_auc": missing}, {"val_auc": 0.5})
    assert not Condition.parse("val_auc >= champion").holds({"val_auc": 0.5}, {"val_auc": missing})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends at character 1, where a metric"),
        ("auc > 1", "there is 'auc' at character 1, where a metric (val_auc"),
        ("val_auc", "it ends at character 8, where one of >="),
        ("val_auc = 1", "there is '=' at character 9"),
        ("val_auc >= winner", "there is 'winner' at character 12, where 'champion' or a number"),
        ("val_auc >= champion -", "it ends at character 22, where a number"),
        ("val_auc >= champion - -1", "there is '-' at character 23, where a number"),
        ("val_auc >= champion or val_auc > 0", "there is 'or' at character 21, where 'and', or the end"),
        ("val_auc >= champion * 2", "there is '*'"),
        ("val_auc > 1e999", "there is '1e999'"),
        ("val_auc > nan", "there is 'nan'"),
        ("val_auc >= __import__('os').getcwd()", "there is '__import__'"),
        ("val_auc > 0 and", "it ends at character 16, where a metric"),
    ],
)
def test_what_is_no_condition_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Condition.parse(text)
    assert message in str(raised.value)


@given(st.text(max_size=30))
def test_any_text_is_a_condition_or_a_config_error(text: str) -> None:
    try:
        Condition.parse(text)
    except ConfigError:
        return
    assert any(text.strip().startswith(metric) for metric in METRICS)
