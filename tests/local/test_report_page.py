"""The report page: self-contained, accessible, honest about what is missing, safe against hostile names."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipelines.report import step as report_step
from tests.rich_records import with_metrics
from tests.sweep_records import GAIN, parent_record, record, report_in_words, sweep_records, trial
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.figures.words import seconds
from uml_core.reporting import figures
from uml_core.reporting.collect import SweepResults, collect_sweep
from uml_core.reporting.page import Report, build_report
from uml_core.reporting.space_rows import mixture_grids
from uml_core.reporting.tables import arm_notes, arm_rows, failed_trials, shift_rows
from uml_core.tracking.records import RunRecord
from uml_core.tracking.uri import without_credentials

URI = "sqlite:////somewhere/mlflow.db"
HOSTILE = '<script>alert("x")</script> & $\\frac{1}$'
DRAWINGS = (
    figures.accuracy_per_arm,
    figures.accuracy_against_shots,
    figures.mixing_heat_map,
    figures.shifted_accuracy,
)


class Page(HTMLParser):
    """What a reader, a printer and a screen reader find on a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []  # text of the body, in order
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "body" in self.open and data.strip():
            self.texts.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def build(records: list[RunRecord], name: str = "demo") -> Report:
    return build_report(name, records, tracking_uri=URI)


def collected(records: list[RunRecord]) -> SweepResults:
    return collect_sweep(records, records[0])


def mixing_records(
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0), weights: tuple[float, ...] = (0.1, 1.0)
) -> list[RunRecord]:
    parent = parent_record("mixing_ratio", headline="uml")
    records = [parent, *(trial(parent, "unimodal", seed, 0.6, shots=4) for seed in range(3))]
    for seed in range(3):
        for weight in weights:
            for ratio in ratios:
                params = {"mixing.loss_weight.names": weight, "mixing.batch_ratio.names": ratio}
                best = (weight, ratio) == (weights[-1], ratios[0])
                test = 0.7 if best else 0.62
                records.append(trial(parent, "uml", seed, test, shots=4, params=params, selected=best))
    return records


def plain_records(count: int) -> list[RunRecord]:
    return [
        record("uml", params={"seed": index}, metrics={"val/accuracy": 0.7, "test/accuracy": 0.69})
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def full() -> Report:
    """A page with everything on it: two conditions, two sweeps, plain runs, a failed trial."""
    records = sweep_records(GAIN, shots=(4, None))
    records.append(trial(records[0], "noise", 7, None, shots=4, error="loss is not finite at step 20"))
    return build([*records, *mixing_records(), *plain_records(23)])


def test_page_is_self_contained(full: Report) -> None:
    page = Page(full.html)
    assert not page.open
    assert not any(page.all(tag) for tag in ("script", "link", "iframe", "object"))
    ids = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert {anchor["href"] for anchor in page.all("a")} <= ids
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert "url(" not in full.html
    assert "@import" not in full.html
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_page_has_structure_for_screen_readers(full: Report) -> None:
    page = Page(full.html)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) > 5
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert page.all("img")
    assert all(len(image["alt"] or "") > 40 for image in page.all("img"))
    assert not page.all("svg")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_four_answers_come_first_then_the_verdict_whose_kind_is_told_in_words(full: Report) -> None:
    texts = Page(full.html).texts
    assert texts[:3] == ["demo", "Does it help?", "Yes."]
    said = texts.index(full.verdict.text)
    questions = ["How much?", "Which corpus?", "What do I ship?"]
    assert [text for text in texts[:said] if text in questions] == questions
    assert texts[said + 1 : said + 3] == ["Verdict:", "gain"]
    assert '<div class="verdict gain">' in full.html


def test_numbers_on_the_page_are_those_of_the_sweep(full: Report) -> None:
    text = " ".join(Page(full.html).texts)
    for expected in ("Holm's p", "loss is not finite at step 20", "The newest 20 of 23 runs", "c0ffee", "0123456789ab"):
        assert expected in text
    assert "Unequal search budgets" in text
    assert "λ 1, ratio 0.5 (3 seeds)" in text
    assert "18 against 3" in text


def test_figures_are_named_by_sweep(full: Report) -> None:
    assert [figure.name for figure in full.figures] == [
        "controls_accuracy_against_shots",
        "controls_accuracy_per_arm",
        "controls_shifted_accuracy",
        "mixing_ratio_accuracy_per_arm",
        "mixing_ratio_mixing_heat_map",
    ]
    assert all(b"<svg" in figure.svg for figure in full.figures)


def test_figures_are_the_same_every_time() -> None:
    records = sweep_records(GAIN)
    assert build(records).html == build(records).html


def test_hostile_names_are_text() -> None:
    parent = parent_record(HOSTILE, uml_target=HOSTILE, uml_question=HOSTILE, uml_corpora=f"{HOSTILE},names")
    records = sweep_records(
        {**GAIN, HOSTILE: 0.5, '"><img src=x onerror=y>': 0.6, "_\x00": 0.4, " ": 0.3}, parent=parent
    )
    records.append(trial(parent, "noise", 0, None, error=HOSTILE))
    report = build([*records, *plain_records(1)], name=HOSTILE)
    page = Page(report.html)
    assert not page.open
    assert not page.all("script")
    assert all("onerror" not in attributes for attributes in page.all("img"))
    assert all(set(figure.name) <= set("abcdefghijklmnopqrstuvwxyz_-0123456789") for figure in report.figures)


def test_a_control_sweep_decides_before_a_newer_mixing_ratio() -> None:
    assert report_in_words([*sweep_records(GAIN), *mixing_records()]).verdict.kind == "gain"
    alone = report_in_words(mixing_records())
    assert alone.verdict.kind == "undecided"
    assert "no gain can be claimed" in alone.html


def test_plain_runs_alone_are_undecided_and_name_the_command() -> None:
    report = build(plain_records(2))
    assert report.verdict.text.startswith("Undecided: 2 plain training runs")
    assert "python -m pipelines.tune EXPERIMENT.yaml --space controls" in report.verdict.text
    texts = Page(report.html).texts
    assert texts.index(report.verdict.text) < 20
    assert any(re.search(r"--model runs:/\w{32}/model --input", text) for text in texts)
    newer = record("unimodal", metrics={"test/accuracy": 0.6})
    assert "the model of the newest uml run" in build([*plain_records(1), newer]).html
    assert "1 plain training run without a sweep does not show" in build(plain_records(1)).verdict.text
    with pytest.raises(ValueError, match="no sweeps"):
        build([record("trial")])


def test_every_sweep_is_reachable_from_the_page() -> None:
    sweeps = [sweep_records(GAIN, seeds=seeds) for seeds in (1, 3, 5)]
    killed, *trials = sweep_records(GAIN)
    sweeps.append([replace(killed, status="KILLED"), *trials])  # newer, and without a page
    report = report_in_words([*(run for sweep in sweeps for run in sweep), *mixing_records()])
    page = Page(report.html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {f"sweep-{records[0].run_id}" for records in sweeps} < set(ids)
    assert sorted(anchor["href"] or "" for anchor in page.all("a")) == sorted(f"#{each}" for each in ids)
    text = " ".join(page.texts)
    assert [text.count(words) for words in ("Other sweep controls of", "is its own page")] == [3, 2]
    assert "1 seed cannot decide" in text
    assert "All sweeps" in text


def test_what_was_left_out_is_shown_folded() -> None:
    lines = "names: 3 rows of classes the target lacks were dropped: <b> (3)\npictures: 1 rows could not be read"
    report = report_in_words(sweep_records(GAIN, parent=parent_record(uml_left_out=lines)))
    texts = Page(report.html).texts
    start = texts.index("What was left out of the data, or is missing in it (2)")
    assert texts[start + 1 : start + 3] == lines.splitlines()
    plain = [replace(run, tags={**run.tags, "uml.left_out": lines}) for run in plain_records(1)]
    assert lines.splitlines()[1] in build(plain).html
    assert "What was left out" not in build(plain_records(1)).html


def test_interrupted_sweep_says_so() -> None:
    finished = parent_record()
    parent = RunRecord(**{**vars(finished), "status": "RUNNING"})
    report = build([parent, trial(parent, "unimodal", 0, 0.6, selected=False)])
    assert report.verdict.kind == "undecided"
    assert "--space controls --resume" in report.html
    assert not report.figures


@pytest.mark.parametrize(
    "records",
    [
        [parent_record()],
        sweep_records(GAIN, seeds=1),
        sweep_records({"uml_init": 0.5}),
        sweep_records({"unimodal": 1.0, "uml_init": 0.0}, seeds=2, shots=(1, 2)),
        mixing_records(ratios=(1.0,), weights=(1.0,)),
        mixing_records(ratios=(0.5,)),
    ],
    ids=["no trials", "one seed", "no baseline", "extremes", "one mixture", "one ratio"],
)
def test_sparse_sweeps_render(records: list[RunRecord]) -> None:
    page = Page(build(records).html)
    assert not page.open
    assert len(page.all("h1")) == 1
    assert not re.search(
        r"\b(nan|none|inf)\b", " ".join(page.texts).replace("none recorded", "").replace("where none is", "")
    )


def test_no_test_split_draws_nothing() -> None:
    parent = parent_record()
    records = [parent, *(trial(parent, arm, 0, None, val=0.5) for arm in ("unimodal", "uml_init"))]
    assert [draw(collected(records)) for draw in DRAWINGS] == [None] * 4
    assert not Page(build(records).html).open


@pytest.mark.parametrize("draw", DRAWINGS)
def test_figures_have_labelled_axes_with_units(draw: Callable[[SweepResults], Figure | None]) -> None:
    records = mixing_records() if draw is figures.mixing_heat_map else sweep_records(GAIN, shots=(1, None))
    figure = draw(collected(records))
    assert figure is not None
    last = figure.axes[-1]
    words = " ".join([last.get_xlabel(), last.get_ylabel(), last.get_title(loc="left")])
    assert "(%)" in words
    assert last.get_xlabel()


def test_one_panel_per_condition() -> None:
    sweep = collected(sweep_records(GAIN, shots=(1, 4, None)))
    figure = figures.accuracy_per_arm(sweep)
    assert figure is not None
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["At 1 shot", "At 4 shots", "With all training data"]


def test_heat_map_averages_seeds_and_frames_the_best() -> None:
    (grid,) = mixture_grids(collected(mixing_records()))
    assert grid.loss_weights == (0.1, 1.0)
    assert grid.batch_ratios == (0.5, 1.0, 2.0)
    assert grid.gain[1, 0] == pytest.approx(0.7 - 0.6)
    assert grid.gain[0, 0] == pytest.approx(0.62 - 0.6)
    assert grid.best == (1, 0)


def test_absent_mixing_settings_are_one_and_missing_cells_stay_empty() -> None:
    parent = parent_record("mixing_ratio", headline="uml")
    records = [
        *(parent, trial(parent, "unimodal", 0, 0.6), trial(parent, "unimodal", 1, 0.5), trial(parent, "uml", 0, 0.7)),
        trial(parent, "uml", 1, 0.6, params={"mixing.loss_weight.names": 0.3, "mixing.batch_ratio.names": 2}),
        trial(parent, "uml", 2, None, error="died", params={"mixing.loss_weight.names": 9.0}),
    ]
    (grid,) = mixture_grids(collected(records))
    assert (grid.loss_weights, grid.batch_ratios) == ((0.3, 1.0), (1.0, 2.0))
    assert grid.gain[1, 0] == pytest.approx(0.1), "paired by seed"
    assert grid.gain[0, 1] == pytest.approx(0.1)
    assert grid.gain[0, 0] != grid.gain[0, 0], "no trial there"
    assert figures.mixing_heat_map(collected(records)) is not None


def test_arm_rows_are_corrected_over_the_whole_table() -> None:
    rows = arm_rows(collected(sweep_records(GAIN, shots=(1, None))))
    tested = [row for row in rows if row.difference is not None]
    assert len(rows) == 2 * len(GAIN)
    assert len(tested) == 2 * (len(GAIN) - 1)
    smallest = min(tested, key=lambda row: row.difference.p_value if row.difference else 1.0)
    assert smallest.difference is not None
    assert smallest.adjusted_p == pytest.approx(min(1.0, len(tested) * smallest.difference.p_value))
    assert [row.role for row in rows[: len(GAIN)]].count("baseline") == 1


def test_arms_are_explained_by_their_space() -> None:
    assert "random head" in arm_notes(collected(sweep_records(GAIN)))["unimodal"]
    assert "as in the experiment file" in arm_notes(collected(mixing_records()))["unimodal"]  # its head may be text's
    own = collected(sweep_records({"unimodal": 0.5}, parent=parent_record("my_space")))
    assert arm_notes(own) == {"unimodal": "an arm of this sweep's own space."}


def test_shift_rows_compare_on_the_same_set() -> None:
    rows = {row.arm: row for row in shift_rows(collected(sweep_records(GAIN)))}
    assert rows["unimodal"].difference is None
    difference = rows["uml_init"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.08, abs=0.005)


def test_failed_trials_with_one_reason_are_counted_together() -> None:
    parent = parent_record()
    records = [parent, *(trial(parent, "noise", seed, None, error="out of memory") for seed in range(40))]
    (((_, *named), count),) = failed_trials([collected(records)])
    assert (named, count) == (["noise", "out of memory"], 40)


def test_a_thousand_trials_render_in_seconds() -> None:
    parent = parent_record()
    arms = {**GAIN, **{f"own_{index}": 0.6 for index in range(10)}}
    records = [*sweep_records(arms, parent=parent, shots=(1, 4))]
    records += [trial(parent, arm, seed, 0.5, selected=False) for arm in arms for seed in range(40)]
    classes = {f"test/class_accuracy/a class whose name is long, {code}": code / 1000 for code in range(1000)}
    records = [with_metrics(run, classes) if run.arm in ("unimodal", "uml_init") else run for run in records]
    assert len(records) > 1000
    started = time.perf_counter()
    report = build(records)
    assert time.perf_counter() - started < 30
    assert len(report.html) < 1_000_000


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://user:pa@ss@db:5432/mlflow?password=x", "postgresql://db:5432/mlflow"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("https://token@host/path", "https://host/path"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    html = build_report("demo", plain_records(1), tracking_uri=uri).html
    assert shown in html
    assert "pa@ss" not in html
    assert "token@" not in html


@pytest.mark.parametrize(
    ("value", "text"), [(3.14, "3.1 s"), (300.0, "5 min"), (7260.0, "2 h 1 min"), (float("nan"), "–")]
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


def experiment(store: str) -> Experiment:
    corpus = {"modality": "vector", "format": "embeddings", "path": "pictures.parquet"}
    return parse_experiment({"name": "demo", "store": store, "target": "pictures", "corpora": {"pictures": corpus}})


def test_step_writes_page_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = sweep_records(GAIN)
    monkeypatch.setattr(report_step, "experiment_runs", lambda uri, name: records)
    summary = report_step.run(experiment(str(tmp_path / "store")))
    page = tmp_path / "report" / "index.html"
    assert summary.text.startswith("Gain")
    assert str(page) in summary.text
    assert json.loads(json.dumps(summary.results)) == {
        "report": str(page),
        "verdict": report_in_words(records).verdict.text,
        "verdict_kind": "gain",
        "runs": len(records),
        "figures": [
            str(tmp_path / "report" / "figures" / f"controls_{name}.svg")
            for name in ("accuracy_per_arm", "shifted_accuracy")
        ],
    }
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(file.suffix for file in (tmp_path / "report" / "figures").iterdir()) == [
        ".svg",
        ".svg",
    ]
    assert [file.name for file in (tmp_path / "report").iterdir() if file.name.startswith(".")] == []


def test_step_without_runs_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_step, "experiment_runs", lambda uri, name: [record("")])
    with pytest.raises(InputError, match=r"experiment demo has no runs .* sqlite:///runs/mlflow.db; run python -m"):
        report_step.run(experiment(str(tmp_path / "store")))


def test_step_refuses_places_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_step, "experiment_runs", lambda uri, name: sweep_records(GAIN))
    with pytest.raises(InputError, match=r"--output is nope://bucket/report, which cannot be opened"):
        report_step.run(experiment("nope://bucket/store"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="Not a directory"):
        report_step.run(experiment(str(tmp_path / "store")), tmp_path / "file" / "report")
