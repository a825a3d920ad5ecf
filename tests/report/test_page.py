from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from recsys_embed.errors import ConfigError, DataError
from recsys_embed.report.page import HTML, MARKDOWN, escape_markdown, write_page
from recsys_embed.report.results import RESULTS, predictions_path, read_predictions, read_results, write_predictions
from recsys_embed.report.summary import Section, summarise
from recsys_embed.report.tables import advise
from recsys_embed.report.tables.words import number, signed
from recsys_embed.training.metrics import auc


class Reader(HTMLParser):
    """The page's elements, and the text of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.inside:
            self.rows[-1][-1] += data


def page(folder: Path) -> Reader:
    return Reader((folder / HTML).read_text(encoding="utf-8"))


def only(folder: Path) -> Section:
    (section,) = summarise(folder)
    return section


# --- the answer ----------------------------------------------------------------------------------------------


def test_equal_methods_are_undistinguished_and_different_ones_are_not(study: SimpleNamespace, tmp_path: Path) -> None:
    method = study.Method
    study.write(
        tmp_path,
        [
            method("full", {"": 0.0}),
            method("unified", {"0.1": 0.1}),
            method("unified", {"0.1": 0.1}, {"chunks": 3}),
            method("hash", {"0.1": 0.4}),
        ],
        rows=4000,
    )
    section = only(tmp_path)
    (budget,) = section.budgets
    best = section.best(budget)
    assert best is not None
    assert {best.method, *(cell.method for cell in section.like_best(budget))} == {"unified", "unified (chunks 3)"}
    ranks = section.ranks(budget)
    assert ranks["unified"] == ranks["unified (chunks 3)"] == (1, 2)
    assert ranks["hash"] == (3, 3)
    text = str(advise(section, budget))
    assert "a real difference" in text
    assert "hash" not in text
    assert f"not distinguishable from {best.method}" in text


def test_the_recommendation_is_for_the_smallest_budget_in_reach_of_full(folder: Path) -> None:
    section = only(folder)
    budget = section.default_budget()
    assert budget is not None
    assert budget.text == "0.1"
    text = str(advise(section, budget))
    best, full = section.best(budget), section.full
    assert best is not None
    assert full is not None
    assert best.method == "unified"
    for part in (
        number(best.auc),
        "3 seeds",
        "1.1 MB",
        "1.09 MB",
        "10.0% of full’s 11 MB",
        "not distinguishable from it",
    ):
        assert part in text
    gap = section.difference(best, full)
    assert f"95% interval of the difference {signed(gap.low)} to {signed(gap.high)}" in text
    assert text in " ".join("".join(page(folder).words).split())
    assert text.replace("use unified ", "use **unified** ") in (folder / MARKDOWN).read_text(encoding="utf-8")


@pytest.mark.parametrize("budget", ["0.5", "0.50", "2x", "5.5MB", "5500000"])
def test_a_budget_is_found_however_it_is_written(folder: Path, tmp_path: Path, budget: str) -> None:
    section = only(folder)
    found = section.find_budget(budget)
    assert found is not None
    assert found.text == "0.5"
    assert section.find_budget("0.3") is section.find_budget("nonsense") is None


def test_an_unknown_budget_is_refused_with_those_there_are(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"'0\.3'; there are 0\.5 \(5\.5 MB\), 0\.1 \(1\.1 MB\), 0\.02 \(220 kB\)"):
        write_page(tmp_path / "copy", budget="0.3")
    write_page(tmp_path / "copy", budget="0.02")
    assert "At a budget of 0.02 (220 kB) use" in (tmp_path / "copy" / HTML).read_text(encoding="utf-8")


def test_rows_that_are_left_out_are_told(study: SimpleNamespace, tmp_path: Path, folder: Path) -> None:
    told = ["5 rows skipped: column 'price': text in a numeric column (file 'a.csv', row 7: first (value 'cheap'))"]
    told.append("1 row dropped for a label that is neither positive nor negative: '3' 1")
    method = study.Method("full", {"": 0.0})
    study.write(tmp_path, [method], protocol={"rows": {"train": 10}, "left_out": told})
    write_page(tmp_path)
    for text in (" ".join(page(tmp_path).words), (tmp_path / MARKDOWN).read_text().replace("\\_", "_")):
        assert "Rows of the input were left out" in text
        assert all(one in text for one in told)
    assert "left out" not in " ".join(page(folder).words)


def test_values_without_an_id_are_told(study: SimpleNamespace, tmp_path: Path) -> None:
    shares = {f"c{i}": i / 1000 for i in range(12)}
    study.write(tmp_path, [study.Method("full", {"": 0.0})], protocol={"rows": {"train": 10}, "unseen": shares})
    write_page(tmp_path)
    assert "missing: c11 1.1%, c10 1.0%, c9 0.9%" in (tmp_path / MARKDOWN).read_text()
    assert "c4 0.4%, 4 other features at most 0.3%" in " ".join(page(tmp_path).words)


# --- the numbers ---------------------------------------------------------------------------------------------


def test_every_number_of_a_budget_can_be_recomputed_from_the_files(folder: Path) -> None:
    frame = read_results(folder / RESULTS)
    frame = frame[frame["status"] == "ok"]
    rows = page(folder).rows
    markdown = (folder / MARKDOWN).read_text(encoding="utf-8")
    full = frame[frame["strategy"] == "full"]["test_auc"].mean()
    for (strategy, budget), runs in frame[frame["strategy"] != "full"].groupby(["strategy", "budget_requested"]):
        scores = [read_predictions(folder, run) for run in runs["run"]]
        aucs = np.array([auc(one["label"], one["score"]) for one in scores if one is not None])
        mean, sd = f"{aucs.mean():.4f}", f"± {aucs.std(ddof=1):.4f}"
        difference = signed(aucs.mean() - full)
        logloss = f"{runs['test_logloss'].mean():.4f}"
        row = [row for row in rows if row[0].startswith(str(strategy)) and len(row) > 4 and mean in row[3]]
        assert len(row) == 1, (strategy, budget)
        assert sd in row[0][3]
        assert row[0][4].strip().startswith(difference)
        assert logloss in row[0]
        line = [line for line in markdown.splitlines() if line.startswith(f"| {strategy} ") and f"{mean} {sd}" in line]
        assert len(line) == 1
        assert f" {difference} [" in line[0]
        bucket = next(row for row in rows if row[:2] == [strategy, budget] and len(row) == 6)
        for place, name in enumerate(("head", "torso", "tail", "unseen")):
            known = [one for one in scores if one is not None]
            values = [auc(one["label"][one["bucket"] == place], one["score"][one["bucket"] == place]) for one in known]
            assert bucket[2 + place].startswith(f"{np.mean(values):.4f}"), name


def test_the_same_files_give_the_same_bytes_in_any_order_of_rows(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    frame = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    frame.sample(frac=1, random_state=1).to_csv(tmp_path / "copy" / RESULTS, index=False)
    for name in (HTML, MARKDOWN):
        (tmp_path / "copy" / name).unlink()
    assert write_page(tmp_path / "copy") == tmp_path / "copy" / HTML
    for name in (HTML, MARKDOWN):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_scores_that_do_not_belong_to_the_results_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    run = "hash-1-0.1-2"
    scores = read_predictions(copy, run)
    assert scores is not None
    write_predictions(copy, run, **(scores | {"score": 1 - scores["score"]}))
    with pytest.raises(DataError, match="test AUC of") as caught:
        write_page(copy)
    assert caught.value.file == str(predictions_path(copy, run))
    write_predictions(copy, run, **(scores | {"row": scores["row"] + 1}))
    with pytest.raises(DataError, match="cannot be compared row by row") as caught:
        write_page(copy)
    assert caught.value.column == "row"


def test_what_is_beside_the_budget_is_told_once_where_it_is_known(folder: Path, tmp_path: Path) -> None:
    told = "Beside every budget: the vocabulary’s strings, which turn raw rows into ids, 2.3 MB."
    for name in (HTML, MARKDOWN):
        assert (folder / name).read_text(encoding="utf-8").count(told) == 1
    # A file from before the column existed.
    frame = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    frame.drop(columns="host_bytes").to_csv(tmp_path / RESULTS, index=False)
    assert "Beside every budget" not in write_page(tmp_path).read_text(encoding="utf-8")


def test_serving_speed_is_a_median_over_seeds_beside_bytes_and_full(folder: Path, tmp_path: Path) -> None:
    rows = page(folder).rows
    start = rows.index(["strategy", "budget", "serving bytes", "one row, µs", "× full", "batch, rows/s", "× full"])
    # The seeds are 0, 1 and 2: of the planted times the middle one is seed 1's, which is not the mean.
    assert rows[start + 1] == ["full", "–", "11 MB", "507", "1.00", "390,000", "1.00"]
    assert rows[start + 2] == ["hash", "0.5", "5.47 MB", "607", "1.20", "190,000", "0.49"]
    told = "Shipped models on Example CPU, threads: 1, warm, from encoded rows to probabilities; medians over seeds."
    for name in (HTML, MARKDOWN):
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(told) == 1
        assert "the median of 100 requests" in text
        assert "Batch: of 4,096 rows" in text
    # A file from before serving was measured.
    frame = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    young = ["latency_single_row_microseconds", "predict_rows_per_second", "serving"]
    frame.drop(columns=young).to_csv(tmp_path / RESULTS, index=False)
    write_page(tmp_path)
    old = page(tmp_path)
    assert ["hash", "0.5", "5.47 MB", "–", "–", "–", "–"] in old.rows
    assert "Not measured" in "".join(old.words)
    assert "rows per second" not in "".join(old.words)  # no figure of nothing


# --- the page ------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_loads_nothing(folder: Path) -> None:
    text = (folder / HTML).read_text(encoding="utf-8")
    reader = page(folder)
    names = [tag for tag, _ in reader.tags]
    assert text.startswith("<!DOCTYPE html>")
    assert ("html", {"lang": "en"}) in reader.tags
    assert ("meta", {"charset": "utf-8"}) in reader.tags
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert not re.search(r"@import|url\((?!#)|(?:src|href)=\"(?!#)", text)
    for rule in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
        assert rule in text
    ids = [attributes["id"] for _, attributes in reader.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in reader.tags:
        for key in ("href", "xlink:href"):
            assert attributes.get(key) is None or str(attributes[key])[1:] in ids


def test_figures_are_described_and_coloured_by_the_page(folder: Path) -> None:
    text = (folder / HTML).read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        assert 'role="img"' in figure
        assert re.search(r"<title id=\"[^\"]+\">\S", figure)
        assert "currentColor" in figure
        colours = re.sub(r"var\(--[a-z0-9-]+\)|currentColor", "", figure)
        assert not re.search(r"(?:fill|stroke): *#", colours)
        assert "<style" not in figure
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", text)):
        assert f"{variable}:" in text


def test_the_users_matplotlib_is_left_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        write_page(tmp_path / "copy")
        assert matplotlib.rcParams["font.size"] == 30
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "copy" / HTML).read_bytes() == (folder / HTML).read_bytes()


HOSTILE = [
    "<script>alert(1)</script>",
    'a"><img src=x onerror=alert(1)>',
    "$\\frac{a}{b}$",
    "p|q",
    "{{ 7*7 }}",
    "#1a0001",
]


def test_names_and_messages_are_text(study: SimpleNamespace, tmp_path: Path) -> None:
    method = study.Method
    study.write(
        tmp_path,
        [
            method("full", {"": 0.0}),
            method("hash", {"0.1": 0.1}, {"note": "<b>"}),
            method(
                "<i>odd</i>", {"0.1": 0.1}, status={"0.1": "failed"}, error="<script>alert(2)</script>\n| x | &amp;"
            ),
        ],
        rows=300,
        seeds=(0, 1),
        parts=dict.fromkeys(HOSTILE, 0.16),
        dataset="</title><script>alert(3)</script>",
        versions={"<u>torch</u>": "<script>"},
    )
    write_page(tmp_path)
    reader = page(tmp_path)
    assert not {"script", "img", "b", "i", "u"} & {tag for tag, _ in reader.tags}
    words = "".join(reader.words)
    for text in (*HOSTILE[:5], "<script>alert(2)</script>", "<i>odd</i>", "</title><script>alert(3)</script>"):
        assert text in words
    markdown = (tmp_path / MARKDOWN).read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "<img" not in markdown
    for line in markdown.splitlines():
        if line.startswith("| ") and "alert(2)" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) == 6


def test_markdown_stays_on_its_line() -> None:
    assert escape_markdown("a|b\n# *c* <d> [e](f) [1, 2]") == r"a\|b # \*c\* &lt;d> [e\](f) [1, 2]"


# --- studies with something missing --------------------------------------------------------------------------


def test_one_seed_has_no_spread_and_no_ranks(study: SimpleNamespace, tmp_path: Path) -> None:
    study.write(tmp_path, rows=600, seeds=(4,))
    write_page(tmp_path)
    text = (tmp_path / HTML).read_text(encoding="utf-8")
    assert "one seed cannot rank strategies" in text
    assert "Three seeds or more are needed to rank" in text
    assert "± 0" not in text
    assert "nan" not in text.lower().replace("finance", "")
    assert not any("rank" in row for row in page(tmp_path).rows)


def test_without_full_there_is_no_difference_to_it(study: SimpleNamespace, tmp_path: Path) -> None:
    study.write(tmp_path, study.METHODS[1:], rows=600, bayes=False)
    write_page(tmp_path)
    text = (tmp_path / HTML).read_text(encoding="utf-8")
    assert "At a budget of 0.1 (1.1 MB) use" in text  # the middle one
    assert "full was not trained" in text
    assert "difference to full</th>" not in text
    assert "Bayes" not in text


def test_full_alone_has_nothing_to_compare(study: SimpleNamespace, tmp_path: Path) -> None:
    study.write(tmp_path, study.METHODS[:1], rows=300)
    write_page(tmp_path)
    words = "".join(page(tmp_path).words)
    assert "nothing to compare them with" in words
    assert "Serving bytes by part, of full." in words
    assert "Quality against bytes" not in words


def test_failed_cells_are_shown_with_their_messages(folder: Path, study: SimpleNamespace, tmp_path: Path) -> None:
    rows = page(folder).rows
    assert ["compositional", "0.02", "infeasible", "0, 1, 2", study.METHODS[3].error] in rows
    assert "no result (compositional at 0.02: infeasible)" in "".join(page(folder).words)
    methods = [study.Method("hash", {"0.5": 0.1, "0.1": 0.2}, status={"0.5": "diverged", "0.1": "failed"}, error="E")]
    study.write(tmp_path, methods, rows=300)
    write_page(tmp_path)
    words = "".join(page(tmp_path).words)
    assert "No run ended well" in words
    assert words.index("Budget 0.5") < words.index("Budget 0.1")
    assert "<svg" not in (tmp_path / HTML).read_text(encoding="utf-8")


def test_a_cell_that_lost_a_seed_says_so(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    frame = pd.read_csv(copy / RESULTS, dtype=str, keep_default_na=False)
    frame.loc[frame["run"] == "hash-1-0.1-2", ["status", "test_auc", "error"]] = [
        "diverged",
        "",
        "loss is nan at step 7",
    ]
    frame.to_csv(copy / RESULTS, index=False)
    write_page(copy)
    words = "".join(page(copy).words)
    assert "2 of 3 seeds, rest diverged" in words
    assert "loss is nan at step 7" in words


def test_without_predictions_nothing_is_called_real(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / RESULTS, tmp_path / RESULTS)
    write_page(tmp_path)
    words = "".join(page(tmp_path).words)
    assert "The predictions of 27 runs are not in the folder" in words
    assert "distinguishable" not in words
    assert "interval of" not in words


def test_a_bucket_of_one_class_is_undefined(study: SimpleNamespace, tmp_path: Path) -> None:
    study.write(tmp_path, rows=400)
    for row in read_results(tmp_path / RESULTS)["run"]:
        scores = read_predictions(tmp_path, row)
        if scores is not None:
            unseen = np.flatnonzero(scores["bucket"] == 3)
            scores["bucket"][unseen[scores["label"][unseen] == 1]] = 2
            write_predictions(tmp_path, row, **scores)
    frame = pd.read_csv(tmp_path / RESULTS, dtype=str, keep_default_na=False)
    frame["auc_unseen"] = ""
    frame.to_csv(tmp_path / RESULTS, index=False)
    write_page(tmp_path)
    assert "undefined" in (tmp_path / HTML).read_text(encoding="utf-8")


def test_several_data_sets_get_a_section_each(study: SimpleNamespace, tmp_path: Path) -> None:
    methods = study.METHODS[:2]
    rows = study.write(tmp_path, methods, rows=300, seeds=(0, 1))
    frame = pd.read_csv(tmp_path / RESULTS, dtype=str, keep_default_na=False)
    other = frame.assign(dataset="ratings", fingerprint="ff", run=frame["run"] + "-b")
    for run in frame["run"]:
        shutil.copy(predictions_path(tmp_path, run), predictions_path(tmp_path, run + "-b"))
    pd.concat([frame, other]).to_csv(tmp_path / RESULTS, index=False)
    write_page(tmp_path)
    text = (tmp_path / HTML).read_text(encoding="utf-8")
    assert text.count('<h2 class="section">') == 2
    assert text.count('<p class="advice">') == 2
    assert len(rows) == len(frame)
    ids = [attributes["id"] for _, attributes in page(tmp_path).tags if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_two_runs_of_one_seed_are_refused(folder: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    pd.concat([frame, frame.tail(1).assign(run="again")]).to_csv(tmp_path / RESULTS, index=False)
    with pytest.raises(DataError, match="have the same seed"):
        write_page(tmp_path)
