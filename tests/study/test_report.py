"""The report as text: what it says, in which order, that names cannot break it, and that its charts are true."""

import ast
import dataclasses
import itertools
import json
import math
import os
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from wellposed.study import charts
from wellposed.study.canvas import axis, fence
from wellposed.study.formats import Figures, duration, moment
from wellposed.study.references import BOOSTING, GUESS, LINEAR
from wellposed.study.report import render, snippet, write_report
from wellposed.study.results import Diagnosis
from wellposed.study.verdict import PLAIN_NET

ORDER = ["leaderboard", "worth", "learning", "history", "reliability", "residuals", "confusion", "data", "recipe"]


class Seen(HTMLParser):
    """What a browser would make of the page: its tags, its visible text, its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.texts, self.scripts, self.ids, self.inside = [], [], [], [], None
        self.feed(html)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.inside is None:
            self.texts.append(data)


@pytest.fixture(scope="module")
def seen(results):
    return {name: Seen(render(result)) for name, result in results.items()}


def test_sections_stand_in_order_and_only_where_there_is_data(seen):
    for page in seen.values():
        assert page.ids == [name for name in ORDER if name in page.ids]
    missing = {name: [s for s in ORDER if s not in page.ids] for name, page in seen.items()}
    assert missing["binary"] == missing["digits"] == ["residuals"]
    assert missing["regression"] == ["reliability", "confusion"]
    assert missing["hostile"] == ["worth", "reliability", "residuals"]


def test_empty_result_is_the_data_and_the_recipe(binary):
    data = dataclasses.replace(binary.data, columns=(), classes={}, notes=(), warnings=())
    empty = {"leaderboard": (), "worth": (), "curves": (), "trials": (), "diagnosis": Diagnosis(), "data": data}
    page = Seen(render(dataclasses.replace(binary, **empty)))
    assert page.ids == ["data", "recipe"]
    assert "Warning" not in page.text
    assert not [tag for tag, _ in page.tags if tag == "svg"]


def test_figures_of_the_top_and_the_leaderboard(seen):
    text = seen["binary"].text
    verdict, warning, winner, board = (text.index(t) for t in ("by 1.8 points", "Warning", "Winner", "Leaderboard"))
    assert verdict < warning < winner < board
    assert "Winner 87.4 % MaxSup + NormLoss + SAM accuracy on the test part, 95 % interval 86.2 to 88.4 %" in text
    assert "Plain net 85.6 %" in text
    assert "Gradient boosting 87.0 %" in text
    assert "0.4 −0.3 to 1.2 within noise" in text
    assert text.count("within noise") == 2  # the verdict's, and gradient boosting's
    assert "Winner 52,180 Plain net RMSE on the test part" in seen["regression"].text
    assert "−2,310 −3,390 to −1,050 ahead" in seen["regression"].text
    assert "log loss in validation, not measured on the test part" in seen["hostile"].text


def test_long_leaderboard_folds_searched_rows_but_no_reference(seen):
    shown, folded = seen["binary"].text.split("The other 10 candidates")
    for name in (BOOSTING, PLAIN_NET, LINEAR, GUESS, "trial 3"):
        assert name in shown
    assert "trial 15" not in shown
    assert "trial 15" in folded


def test_plain_winner_is_said_in_words(seen):
    assert "The best recipe is the plain net's" in seen["regression"].text
    assert "The best recipe is the plain net's" not in seen["binary"].text


def test_names_from_strangers_are_text_everywhere(seen, hostile):
    page = seen["hostile"]
    markup = (
        "html head meta link title style body main header section aside figure h1 h2 p ul li dl div dt dd time bdi "
    )
    markup += "table thead tbody tr th td span code pre button svg path script br"
    assert {tag for tag, _ in page.tags} <= set(markup.split())
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert [kind for kind, _ in page.scripts].count(None) == 1
    for column in hostile.data.columns:
        assert re.sub(r"\s+", " ", column.name) in page.text
    spots = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert spots
    assert any(hostile.trials[0].recipe in text for chart in spots for *_, text in chart)


def test_report_refers_to_nothing_outside_itself(seen):
    for page in seen.values():
        links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "srcset", "action", "data")]
        assert links == ["data:,"]
        policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
        assert policy.startswith("default-src 'none';")


def test_tables_and_plots_can_be_read_aloud(seen):
    for page in seen.values():
        assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
        pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
        assert all(a.get("aria-hidden") == "true" or len(a["aria-label"]) > 20 for a in pictures)


def test_file_is_small_and_survives_text_that_utf8_cannot_hold(results, tmp_path):
    for name, result in results.items():
        path = tmp_path / f"{name}.html"
        write_report(result, path)
        assert path.stat().st_size < 500_000
        assert path.read_text(encoding="utf-8").endswith("</html>")


def test_failed_write_leaves_the_old_report(binary, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(binary, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["binary", "digits", "regression", "hostile"])
def test_snippet_is_python_with_the_exact_recipe(results, name):
    result = results[name]
    tree = ast.parse(snippet(result))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert call.func.id == ("WellposedRegressor" if name == "regression" else "WellposedClassifier")
    assert arguments == {"recipe": result.recipe, "seed": result.seed} | result.network


def test_heat_map_shows_counts_and_row_shares(seen, binary):
    row = binary.diagnosis.confusion[1]
    assert f"{row[0]} {100 * row[0] / sum(row):.0f} %" in seen["binary"].text


def test_many_classes_give_their_worst_confusions(seen, hostile):
    wrong = np.array(hostile.diagnosis.confusion)
    np.fill_diagonal(wrong, 0)
    actual, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    text = seen["hostile"].text
    first = text[text.index("Of the true class") + len("Of the true class") :].strip()
    labels = [re.sub(r"\s+", " ", hostile.diagnosis.labels[i]) for i in (actual, predicted)]
    assert first.startswith(f"{labels[0]} {labels[1]} {wrong.max()} ")


def test_best_so_far_follows_the_metric_s_direction(results):
    for name in ("binary", "regression"):
        result, chart = results[name], charts.history(results[name])
        line = next(mark for mark in chart.marks if mark.style == "line a")
        heights = [float(p.split()[1]) for p in line.path[1:].split("L")]
        steps = [b - a for a, b in itertools.pairwise(heights)]
        assert all(step <= 0 for step in steps) if result.higher_is_better else all(step >= 0 for step in steps)
        values = [t.value for t in result.trials if t.state == "complete"]
        best = max(values) if result.higher_is_better else min(values)
        assert heights[-1] == pytest.approx(1000 * (1 - chart.y.share(best)), abs=0.1)


def test_diverged_trial_does_not_squash_the_others(regression):
    chart = charts.history(regression)
    assert chart.y.high < 100_000
    assert chart.note.startswith("1 of the trials is far worse")
    assert any("4.10e6" in text for *_, text in chart.hover)


def test_unfinished_epochs_are_not_drawn(hostile):
    loss, valid = charts.learning(hostile)
    assert [len(chart.hover) for chart in (loss, valid)] == [1, 1]
    assert "nan" not in loss.marks[0].path


def test_whiskers_are_wilson_intervals():
    hits = ((1, 4), (5, 7), (48, 50))
    rows = tuple({"confidence": 0.5 + i / 10, "accuracy": k / n, "count": float(n)} for i, (k, n) in enumerate(hits))
    accuracy, _ = charts.reliability(Diagnosis(reliability=rows))
    whiskers = next(mark for mark in accuracy.marks if mark.style == "whisker a").path
    for (k, n), drawn in zip(hits, whiskers[1:].split("M"), strict=True):
        ends = [1 - float(end.split()[1]) / 1000 for end in drawn.split("L")]
        true = binomtest(k, n).proportion_ci(method="wilson")
        assert ends == pytest.approx([true.low, true.high], abs=2e-4)


def test_counts_stand_on_zero_under_the_same_confidence(binary):
    accuracy, counts = charts.reliability(binary.diagnosis)
    assert counts.x == accuracy.x
    assert counts.y.low == 0
    assert [spot[0] for spot in counts.hover] == [spot[0] for spot in accuracy.hover]


def test_far_worse_reference_does_not_squash_the_intervals(seen):
    arrows = [attributes for _, attributes in seen["binary"].tags if attributes.get("class") == "beyond"]
    assert len(arrows) == 1  # the majority's


finite = st.floats(-1e12, 1e12, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_axis_holds_its_values_with_a_few_ticks(values, percent, whole):
    drawn = axis(values, "x", percent=percent, whole=whole)
    assert all(-1e-9 <= drawn.share(v) <= 1 + 1e-9 for v in values)
    assert len(drawn.ticks) <= 11
    assert len(drawn.ticks) >= (0 if whole else 2)
    assert all(-1e-6 <= share <= 100 + 1e-6 for share, _ in drawn.ticks)
    assert len({text for _, text in drawn.ticks}) == len(drawn.ticks)


def test_fence_keeps_all_but_the_far_outliers_of_its_side():
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 9.0]
    assert fence(values, upper=True) == values[:-1]
    assert fence(values, upper=False) == values


def test_numbers_are_written_as_people_write_them():
    percent, plain = Figures(percent=True), Figures(percent=False)
    assert percent.value(0.974) == "97.4\xa0%"
    assert percent.gap(-0.0004) == percent.gap(0.0) == "0.0"
    assert percent.gap(0.0004, sign=True) == "0.0"
    assert percent.gap(0.018, sign=True) == "+1.8"
    assert plain.gap_interval(-0.0123, 1.5) == "−0.01 to 1.50"
    assert plain.value(None) == plain.value(math.nan) == plain.interval(0.1, math.inf) == "–"
    assert moment("2025-06-03T14:21:07") == "2025-06-03 14:21"
    assert moment("yesterday") == "yesterday"
    assert duration(3599.9) == "1\xa0h"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme):
    blocks = re.findall(r":root \{(.*?)\}", (files("wellposed.study") / "templates/report.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[0] + (blocks[1] if scheme == "dark" else "")))

    def luminance(name):
        channels = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(ink, paper) for ink in ("text", "muted", "a", "b", "c", "d") for paper in ("page", "panel")]
    for ink, paper in [*pairs, ("text", "warning"), ("warning-edge", "warning")]:
        dark, light = sorted((luminance(ink), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
