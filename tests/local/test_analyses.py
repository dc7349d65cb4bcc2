"""Analyses of a trained run: the registry, class means and true pairs, what is shown of raw rows, figures."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sklearn.datasets import load_digits
from sklearn.metrics import davies_bouldin_score

from pipelines.command_line import names_in
from tests.conftest import draw, table
from uml_core.analysis.alignment import cka
from uml_core.analysis.explain_neurons import explain_neurons, paired_activations, untrained_models
from uml_core.analysis.raw_rows import RawRows, read_pairs, words_per_row
from uml_core.analysis.registry import ANALYSES, chosen_analyses, explain
from uml_core.analysis.shared_space import AnalysisResult, TrainedRun, class_means
from uml_core.config import Experiment, parse_experiment
from uml_core.corpora.rows import Row
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.evaluation.outcome import evaluated_run
from uml_core.training.run import TrainingRun

CLASSES = 10
RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(CLASSES, 4))
LABELS = [f"class-{code}" for code in range(CLASSES) for _ in range(12)]
ROWS = np.repeat(LATENTS, 12, axis=0) + 0.3 * RNG.normal(size=(12 * CLASSES, 4))  # row i of both: a true pair
TABLES = {
    "target": table(ROWS @ RNG.normal(size=(4, 9)), LABELS, (["train"] * 4 + ["val"] * 3 + ["test"] * 5) * CLASSES),
    "names": table(ROWS @ RNG.normal(size=(4, 6)), LABELS),
    "noise": table(RNG.normal(size=(12 * CLASSES, 6)), LABELS),
}


def trained(corpora: tuple[str, ...] = ("target", "names"), **parts: Any) -> TrainedRun:
    paths = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in corpora}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": paths, "optim": {"lr": 0.01}}
    experiment = parse_experiment({**tree, "train": {"max_steps": 200, "eval_every": 50, "batch_size": 20}})
    data = build_training_data(experiment, TABLES)
    run = TrainingRun(experiment, data)
    for _ in run.evaluations():
        pass
    return TrainedRun(experiment, run.load_best(), data, probabilities=evaluated_run(run).probabilities, **parts)


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    return trained()


@pytest.fixture(scope="module")
def results(run: TrainedRun) -> dict[str, AnalysisResult]:
    return explain(run, chosen_analyses(["all"]))


def test_every_analysis_gives_metrics_figures_and_words(run: TrainedRun, results: dict[str, AnalysisResult]) -> None:
    assert list(results) == list(ANALYSES)
    for name, result in results.items():
        assert result.summary, name
        assert all(metric.startswith("analysis/") and np.isfinite(value) for metric, value in result.metrics.items())
        assert all(b"<svg" in figure.svg for figure in result.figures)
        assert bool(result.figures) == (name not in ("gradients", "alignment", "mistakes", "labels"))
    margins, rows = results["margins"].metrics, run.held_out
    predicted = (run.embeddings("target", rows) @ run.head("target").T).argmax(axis=1)
    assert margins["analysis/margins/positive_share"] == pytest.approx(np.mean(predicted == rows.labels))
    encoded = davies_bouldin_score(rows.gathered().astype(float), rows.labels)
    assert margins["analysis/margins/davies_bouldin_before_projection"] == pytest.approx(encoded)
    alignment = results["alignment"].metrics
    sides, count = (run.held_out, run.data.train["names"]), len(run.data.classes)
    means = [class_means(side.gathered().astype(float), side.labels, count) for side in sides]
    assert alignment["analysis/alignment/names/encoded/cka"] == pytest.approx(cka(*means))
    assert f"{count} class means" in results["alignment"].summary[0]
    assert results["prototypes"].metrics["analysis/prototypes/names/nearest_share"] >= 0.7


def test_the_surest_mistakes_come_first_with_what_they_look_like(run: TrainedRun, tmp_path: Path) -> None:
    draw("circle", np.random.default_rng(0)).save(tmp_path / "one.png")
    labels, wrong = run.held_out.labels, [3, 1, 2]
    probabilities = np.full((len(labels), CLASSES), 0.001)
    probabilities[np.arange(len(labels)), labels] = 0.6
    for row, confidence in zip(wrong, (0.9, 0.8, 0.7), strict=True):
        probabilities[row, (labels[row] + 1) % CLASSES] = confidence
    ids = tuple(f"<row {row}>" for row in range(len(LABELS)))
    raw = RawRows("image", ids, {each: Row(each, None, "test", path=str(tmp_path / "one.png")) for each in ids})
    given = replace(run, raw={"target": raw}, probabilities=lambda split: probabilities)
    result = explain(given, ("mistakes",))["mistakes"]
    assert result.metrics == {"analysis/mistakes/share": pytest.approx(3 / len(labels))}
    page = result.tables["mistakes.html"]
    at = [page.index(f"&lt;row {run.held_out.rows[row]}&gt;") for row in wrong]
    assert at == sorted(at)
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert "taken for <strong>class-1</strong> (90 %)" in page
    assert "<row" not in page
    sentences = RawRows("text", ids, {each: Row(each, None, "test", text=f"about {each}") for each in ids})
    page = explain(replace(given, raw={"target": sentences}), ("mistakes",))["mistakes"].tables["mistakes.html"]
    assert f"about &lt;row {run.held_out.rows[1]}&gt;" in page


def test_planted_wrong_labels_are_found(run: TrainedRun) -> None:
    embeddings, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    planted = rng.permutation(len(labels))[:90]
    given = labels.copy()
    given[planted] = (given[planted] + rng.integers(1, 10, len(planted))) % 10
    rows = LabelledRows(embeddings.astype(np.float32), np.arange(len(labels)), given)
    data = replace(run.data, train={**run.data.train, "target": rows})
    raw = RawRows("vector", tuple(f"digit-{row}" for row in range(len(labels))), {})
    result = explain(replace(run, data=data, raw={"target": raw}), ("labels",))["labels"]
    table = list(csv.DictReader(io.StringIO(result.tables["suspicious_labels.csv"])))
    found = [int(row["id"].removeprefix("digit-")) for row in table]
    assert len(set(found) & set(planted.tolist())) > 0.7 * len(planted), "most are found"
    assert len(set(found[:60]) & set(planted.tolist())) > 54, "the surest are planted"
    assert len(set(found) - set(planted.tolist())) < 0.03 * len(labels), "few right labels are doubted"
    truth = [row["suggested"] == f"class-{labels[row_id]}" for row, row_id in zip(table, found, strict=True)]
    assert np.mean(truth) > 0.8
    margins = [float(row["label_probability"]) - float(row["suggested_probability"]) for row in table]
    assert margins == sorted(margins)
    assert result.metrics["analysis/labels/suspicious"] == len(table)
    few = LabelledRows(embeddings, np.arange(2), np.array([0, 1]))
    alone = replace(run, data=replace(run.data, train={**run.data.train, "target": few}))
    assert "fewer than two classes" in explain(alone, ("labels",))["labels"].summary[0]


def test_names_of_analyses() -> None:
    assert names_in("--analyses", "neurons, margins,neurons") == ["neurons", "margins"]
    assert chosen_analyses(["neurons", "margins"]) == ["neurons", "margins"]
    with pytest.raises(InputError, match=r"names 'margin'; analyses are .*did you mean 'margins'"):
        chosen_analyses(["neurons", "margin"])
    with pytest.raises(InputError, match="--analyses is empty"):
        names_in("--analyses", " ,")


def test_named_classes_of_the_decision_plane(run: TrainedRun) -> None:
    def plane(*names: str) -> tuple[str, ...]:
        chosen = TrainedRun(run.experiment, run.model, run.data, plane_classes=names)  # type: ignore[arg-type]
        return explain(chosen, ("decision_plane",))["decision_plane"].summary

    assert plane("class-7", "class-2")[0].startswith("decision plane of class-7 and class-2 (chosen by name)")
    with pytest.raises(InputError, match="did you mean 'class-2'"):
        plane("class-7", "klass-2")
    with pytest.raises(InputError, match="twice"):
        plane("class-7", "class-7")


def test_class_mean_pairs_are_said_to_be_no_true_pairs(results: dict[str, AnalysisResult]) -> None:
    result = results["neurons"]
    assert all("over 10 class-mean pairs (no true pairs were given)" in line for line in result.summary)
    assert result.metrics["analysis/neurons/names/shared/units"] == 6
    assert result.metrics["analysis/neurons/names/shared/max_partial_r"] > 0.8
    assert 0 < result.metrics["analysis/neurons/names/shared/untrained_max_partial_r"] < 1

    rows = list(csv.DictReader(io.StringIO(result.tables["neurons_names_shared.csv"])))
    assert len(rows) == 6
    assert [float(row["partial_r"]) for row in rows] == sorted((float(row["partial_r"]) for row in rows), reverse=True)


def test_untrained_networks_differ(run: TrainedRun) -> None:
    weights = [model.projections["target"].weight for model in untrained_models(run)]  # type: ignore[union-attr]
    assert len({weight.sum().item() for weight in weights}) == len(weights) == 20


def test_true_pairs_are_used_and_compared_within_labels() -> None:
    rows = np.flatnonzero(np.tile([False] * 7 + [True] * 5, CLASSES))  # the test rows of every class
    run = trained(("target", "names", "noise"), pairs={"target": rows, "names": rows, "noise": rows})
    pairs = paired_activations(run, run.model, "shared", "names", run.matched("names"))
    assert pairs is not None
    assert pairs.first.shape == (5 * CLASSES, 6)
    assert pairs.labels is not None
    assert pairs.labels.tolist() == np.repeat(np.arange(CLASSES), 5).tolist()
    result = explain_neurons(run)
    assert "50 true pairs" in result.summary[0]
    assert result.metrics["analysis/neurons/names/shared/found_holm"] >= 3
    assert result.metrics["analysis/neurons/noise/shared/found_holm"] == 0
    assert "r within class-0" in result.tables["neurons_names_shared.csv"].splitlines()[0]


def test_many_pairs_are_sampled_and_said_so(run: TrainedRun) -> None:
    rows = np.arange(100)
    many = TrainedRun(run.experiment, run.model, run.data, pairs={"target": rows, "names": rows[::-1]})
    chosen = many.matched("names", at_most=20)
    assert chosen.words == "true pairs drawn by lot from 100"
    assert len(chosen.target) == 20
    assert (chosen.target.rows + chosen.other.rows == 99).all(), "partners stay together"


def test_too_few_pairs_are_said_so() -> None:
    rows = np.arange(5)
    result = explain_neurons(trained(pairs={"target": rows, "names": rows}))
    assert result.summary == ("neurons, names: fewer than 8 true pairs, so no unit can be tested",)
    assert not result.figures


def test_class_means() -> None:
    means = class_means(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]]), np.array([0, 0, 2]), 3)
    assert means[[0, 2]].tolist() == [[2.0, 3.0], [5.0, 5.0]]
    assert np.isnan(means[1]).all()


def test_pairs_by_id(tmp_path: Path) -> None:
    ids = {"target": ("a", "b", "c"), "names": ("x", "y")}
    file = tmp_path / "pairs.csv"
    file.write_text("target,names\nc,x\na,y\n", encoding="utf-8")
    found = read_pairs(str(file), ids, target="target")
    assert {corpus: rows.tolist() for corpus, rows in found.items()} == {"target": [2, 0], "names": [0, 1]}
    jsonl = tmp_path / "pairs.jsonl"
    jsonl.write_text('{"target": "c", "names": "x"}\n', encoding="utf-8")
    assert read_pairs(str(jsonl), ids, target="target")["target"].tolist() == [2]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("none.csv", None, "does not exist"),
        ("pairs.txt", "", "ends in .csv, .jsonl, .parquet"),
        ("pairs.csv", "target,nmes\na,x\n", "did you mean 'names'"),
        ("pairs.csv", "names\nx\n", "expected the target 'target'"),
        ("pairs.csv", "target,names\nq,x\n", "1 ids are not in the store of corpus target, first 'q'"),
        ("pairs.parquet", "no parquet", "cannot be read"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path: Path, name: str, content: str | None, part: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        read_pairs(str(tmp_path / name), {"target": ("a",), "names": ("x",)}, target="target")


def test_raw_rows_show_thumbnails_sentences_or_ids(tmp_path: Path) -> None:
    draw("circle", np.random.default_rng(0)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = {name: Row(name, None, "train", path=str(tmp_path / f"{name}.png")) for name in ("good", "bad", "gone")}
    pictures = RawRows("image", ("good", "bad", "gone", "unknown"), rows)
    shown = pictures.show(0)
    assert isinstance(shown, np.ndarray)
    assert shown.shape == (96, 96, 3)
    assert [pictures.show(index) for index in (1, 2, 3)] == ["bad", "gone", "unknown"]
    sentences = RawRows("text", ("s",), {"s": Row("s", None, "train", text="a red circle")})
    assert sentences.show(0) == "a red circle"
    assert sentences.words([0, 0]) == pytest.approx([3.0, 3.0])
    assert pictures.words([0]) is None
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16_000) * 2 * np.pi * 4000 / 16_000), 16_000)
    tone = RawRows("audio", ("t",), {"t": Row("t", None, "train", path=str(tmp_path / "tone.wav"))}).show(0)
    assert isinstance(tone, np.ndarray)
    assert tone.shape == (96, 192, 3)
    assert abs(int(tone.sum(axis=(1, 2)).argmax()) - 48) < 3, "4 kHz of 8 lies in the middle"
    assert RawRows("audio", ("clip",), {"clip": Row("clip", None, "train", path="clip.wav")}).show(0) == "clip"


def test_words(tmp_path: Path) -> None:
    sentences = '{"text": "one two three", "label": "a"}\n{"text": "one", "label": "a"}\n'
    (tmp_path / "names.jsonl").write_text(sentences, encoding="utf-8")
    corpora = {
        "target": {"modality": "vector", "format": "embeddings", "path": "t"},
        "names": {"modality": "text", "format": "table", "path": str(tmp_path / "names.jsonl")},
        "gone": {"modality": "text", "format": "table", "path": str(tmp_path / "gone.jsonl")},
    }
    experiment: Experiment = parse_experiment({"name": "x", "store": "s", "target": "target", "corpora": corpora})
    assert words_per_row(experiment) == {"names": 2.0}
