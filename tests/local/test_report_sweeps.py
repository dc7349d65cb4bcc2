"""What the page says of single spaces: classes, subsets, mixtures, costs; and how it shows in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rich_records import few_shot_records, mixing_records, modality_records, with_metrics, wobble
from tests.sweep_records import GAIN, parent_record, report_in_words, sweep_records, trial
from uml_core.reporting.answers import Answers, answers_of
from uml_core.reporting.collect import SweepResults, collect_sweep
from uml_core.reporting.page import Report, build_report
from uml_core.reporting.space_rows import (
    addition_rows,
    backbone_rows,
    class_gains,
    mixture_grids,
    selected_mixtures,
    sentence_rows,
    subset_rows,
)
from uml_core.reporting.tables import arm_notes, cost_rows, front_trials, sweep_metrics
from uml_core.reporting.verdict import verdict_of
from uml_core.sweeps.selection import Candidate, pareto_front, selected
from uml_core.sweeps.space import Arm, Facts, Space, space_as_json, space_from_json
from uml_core.tracking.records import RunRecord

ALTERNATIVES = {"ridge": 0.62, "discriminant": 0.61, "logistic": 0.61, "prior": 0.60, "shuffled_prior": 0.60}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Runs in the page: what a reader on a screen of that width, or with weak eyes, would stumble over.
INSPECT = """
const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.map(v => linear(v / 255)); return .2126 * r + .7152 * g + .0722 * b; };
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
function behind(node) { for (let n = node; n; n = n.parentElement) {
  const c = rgb(getComputedStyle(n).backgroundColor); if (c.length === 3 || c[3] > 0) return c.slice(0, 3); }
  return [255, 255, 255]; }
window.onload = () => {
  const faint = [];
  for (const node of document.body.querySelectorAll('*')) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
    const a = light(rgb(getComputedStyle(node).color).slice(0, 3)), b = light(behind(node));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push(node.tagName + ' ' + contrast.toFixed(2));
  }
  const images = [...document.images];
  parent.postMessage({width: innerWidth, content: document.documentElement.scrollWidth, faint,
    images: images.length, drawn: images.filter(image => image.naturalWidth > 100).length}, '*');
};
"""


def collected(records: list[RunRecord]) -> SweepResults:
    return collect_sweep(records, records[0])


@pytest.fixture(scope="module")
def full() -> Report:
    """A page over three sweeps and a failed trial."""
    records = few_shot_records()
    records.append(trial(records[0], "uml", 7, None, shots=1, error="out of memory"))
    return build_report(
        "pets", [*records, *mixing_records(), *modality_records()], tracking_uri="sqlite:////data/mlflow.db"
    )


def text_of(report: Report) -> str:
    body = report.html.partition("</style>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " ").split())


def test_the_first_answers_and_the_verdict_are_over_shots(full: Report) -> None:
    assert text_of(full).startswith(
        "pets Does it help? Yes at 1 shot, at 2 shots and at 4 shots; no reliable gain at 8"
    )
    assert "Gain: corpus captions raises test accuracy on photos by +8.0 ± " in text_of(full)
    assert "worth it below 8 shots" in full.verdict.text


def test_a_verdict_of_all_conditions_is_told_from_one_of_some(full: Report) -> None:
    assert "Verdict: gain in at least one condition." in text_of(full)
    everywhere = report_in_words(sweep_records(GAIN, shots=(1, 4)))
    assert "Verdict: gain in every condition." in text_of(everywhere)


def test_every_section_is_on_the_page(full: Report) -> None:
    text = text_of(full)
    for heading in (
        *("Sweep few_shot", "Sweep mixing_ratio", "Sweep modalities", "Gains of single classes", "Costs"),
        *("Subsets of the auxiliary corpora", "What one more corpus adds", "Configuration of sweep few_shot"),
    ):
        assert heading in text
    assert "tune.gpus_per_trial" in text
    assert {figure.name for figure in full.figures} >= {
        *("few_shot_accuracy_against_shots", "few_shot_classes_1", "few_shot_classes_16"),
        *("mixing_ratio_mixing_heat_map", "modalities_accuracy_per_arm"),
    }


def test_class_gains_are_paired_and_ordered() -> None:
    gains = class_gains(collected(few_shot_records()))
    assert [found.condition.shots for found in gains] == [1, 2, 4, 8, 16]
    first = gains[0]
    means = [gain.difference.mean for gain in first.classes]
    assert means == sorted(means, reverse=True)
    assert len(means) == 12
    assert first.num_up + first.num_down == 12
    own = [wobble(code, "uml_init") - wobble(code, "unimodal") for code in range(12)]
    assert sum(means) / 12 == pytest.approx(0.08 + sum(own) / 12, abs=0.005)
    assert all(gain.difference.count == 5 for gain in first.classes)


def test_many_classes_are_shown_from_both_ends() -> None:
    (first, *_) = class_gains(collected(few_shot_records(num_classes=300)))
    assert len(first.shown) == 24
    assert first.shown[:12] == first.classes[:12]
    assert first.shown[12:] == first.classes[-12:]


def test_subsets_and_additions() -> None:
    sweep = collected(modality_records())
    rows = {(row.arm, row.condition.shots): row.facts for row in subset_rows(sweep)}
    assert set(rows["captions+sounds", 1].corpora) == {"captions", "sounds"}
    assert rows["captions_init", 4].initialised
    assert rows["unimodal", 1].corpora == ()
    added = {(row.added, row.to): row.difference.mean for row in addition_rows(sweep) if row.condition.shots == 1}
    assert added == pytest.approx(
        {
            ("captions", "unimodal"): 0.06,
            ("sounds", "unimodal"): 0.0,
            ("sounds", "captions"): -0.02,
            ("captions", "sounds"): 0.04,
        },
        abs=0.005,
    )
    assert "the other auxiliary corpora at λ = 0" in arm_notes(sweep)["captions"]
    assert subset_rows(collected(sweep_records(GAIN))) == addition_rows(collected(sweep_records(GAIN))) == []


def own_records(space: Space, accuracy: dict[str, float], **parts: Any) -> list[RunRecord]:
    """A sweep of a space of one's own."""
    tags = {"uml_corpora": ",".join(("pictures", *parts.pop("corpora", ("names",))))}
    parent = parent_record("mine.py", headline=space.headline, **tags)
    return sweep_records(accuracy, parent=replace(parent, space_json=space_as_json(space)), **parts)


def test_corpora_may_be_called_like_arms_of_other_spaces() -> None:
    facts = {
        "base": Facts(corpora=()),
        "x_init": Facts(corpora=("x",), initialised=True),
        "one": Facts(corpora=("x_init",)),
        "two": Facts(corpora=("a+b",)),
        "both": Facts(corpora=("x_init", "a+b")),
    }
    space = Space("?", tuple(Arm(name, facts=each) for name, each in facts.items()), "base", "both", (0,))
    sweep = collected(own_records(space, dict.fromkeys(facts, 0.5), corpora=("x", "x_init", "a+b")))
    assert {row.arm: row.facts for row in subset_rows(sweep)} == facts
    added = {(row.to, row.added) for row in addition_rows(sweep)}
    assert added == {("base", "x_init"), ("base", "a+b"), ("one", "a+b"), ("two", "x_init")}
    facts = {"base": Facts(corpora=(), sentences="none"), "x_init_5": Facts(corpora=("x_init",), sentences="5")}
    space = Space("?", tuple(Arm(name, facts=each) for name, each in facts.items()), "base", "x_init_5", (0,))
    sweep = collected(own_records(space, dict.fromkeys(facts, 0.5), corpora=("x_init",)))
    assert [(row.facts.corpora, row.facts.sentences) for row, _ in sentence_rows(sweep)] == [
        ((), "none"),
        (("x_init",), "5"),
    ]
    assert not subset_rows(sweep)


def test_heat_maps_are_one_for_all_corpora_or_one_for_each() -> None:
    (together,) = mixture_grids(collected(mixing_records()))
    assert together.corpus == ""
    assert together.gain[2, 0] == pytest.approx(0.05 - 0.005)
    apart = mixture_grids(collected(mixing_records(per_corpus=True)))
    assert [grid.corpus for grid in apart] == ["captions", "sounds"]
    assert apart[0].gain[2, 0] == pytest.approx(0.045)
    assert apart[1].gain[0, 0] == pytest.approx(0.045), "sounds have the weight that captions lack"


def test_selected_mixtures_are_told_in_words() -> None:
    sweep = collected(mixing_records())
    assert selected_mixtures(sweep, sweep.conditions[0]) == [("λ 1, ratio 0.5", 3)]
    curriculum = {"mixing.schedule": "alternate", "mixing.warm_start.steps": 50, "mixing.warm_start.corpus": "photos"}
    records = mixing_records()
    records.append(trial(records[0], "uml", 9, 0.9, shots=4, params=curriculum))
    sweep = collected(records)
    assert selected_mixtures(sweep, sweep.conditions[0])[1][0] == "λ 1, ratio 1, alternate, 50 steps on photos first"


def test_sentences_show_the_rows_that_took_part() -> None:
    parent = parent_record("text", headline="names_all")
    records = [parent]
    for arm, rows in (("unimodal", 9), ("names_15", 9), ("names_average", 1), ("names_all", 9)):
        for seed in range(3):
            run = trial(parent, arm, seed, 0.6 + 0.01 * seed, shots=4)
            records.append(with_metrics(run, {"data/train_rows/names": 12.0 * rows, "data/classes": 12.0}))
    rows_of = {
        row.arm: (row.facts.corpora, row.facts.sentences, rows_per_class)
        for row, rows_per_class in sentence_rows(collected(records))
    }
    assert rows_of == {
        "unimodal": ((), "none", 0.0),
        "names_15": (("names",), "15", 9.0),
        "names_average": (("names",), "average", 1.0),
        "names_all": (("names",), "all", 9.0),
    }
    text = text_of(report_in_words(records))
    assert "Sentences compared" in text
    assert "at most 15 sentences per class of names alone" in text


def test_the_front_of_accuracy_and_cost_is_listed() -> None:
    records = sweep_records(GAIN, shots=(1,))
    for cost in (900.0, 300.0):
        run = with_metrics(
            trial(records[0], "uml_init", 0, None, val=0.5, shots=1, selected=False), {"perf/samples": cost}
        )
        records.append(RunRecord(**{**vars(run), "tags": {**run.tags, "uml.pareto": "true"}}))
    assert [run.metrics["perf/samples"] for run in front_trials(collected(records))] == [300.0, 900.0]
    assert "Accuracy against cost" in text_of(report_in_words(records))


def test_arms_stand_in_the_order_of_the_space_not_in_that_of_their_logging() -> None:
    logged = ("uml_init", "own", "uml", "unimodal", "zero_shot")
    parent = parent_record()
    records = [parent, *(trial(parent, arm, 0, 0.5) for arm in logged)]
    assert collected(records).arm_names() == ["unimodal", "uml", "uml_init", "zero_shot", "own"]
    parent = parent_record("of before", uml_arms="zero_shot,uml,unimodal,uml_init")
    records = [parent, *(trial(parent, arm, 0, 0.5) for arm in logged)]
    assert collected(records).arm_names() == ["unimodal", "zero_shot", "uml", "uml_init", "own"]


def registered(records: list[RunRecord], arm: str) -> list[RunRecord]:
    """A sweep whose last trial of that arm was registered."""
    *_, best = (run.run_id for run in records if run.arm == arm)
    tags = {**records[0].tags, "uml.best_model": "models:/pets@best", "uml.best_trial": best}
    return [replace(records[0], tags=tags), *records[1:]]


def test_what_to_ship_is_an_arm_its_accuracy_and_the_line_that_uses_it() -> None:
    records = registered(sweep_records({**GAIN, **ALTERNATIVES}, shots=(1, 4)), "uml_init")
    text = text_of(report_in_words(records, tracking_uri="http://ada:secret@host:5000"))
    assert "What do I ship? uml_init at 4 shots. As uml (λ > 0), and the head starts from" in text
    assert "Test accuracy 68.4 % (95 % interval 64.4 to 72.4 over 5 seeds). Model models:/pets@best" in text
    assert "python -m pipelines.predict --model models:/pets@best --input FOLDER" in text
    assert "--tracking-uri http://host:5000" in text
    assert "Model models:/pets@1-shots" in text
    assert "best without, uml_init over ridge: +6.0 points (95 % interval +5.3 to +6.7) at 1 shot; +6.0 points" in text
    again = registered(modality_records(), "captions")  # a newer sweep: the aliases are its models now
    text = text_of(report_in_words([*records, *again]))
    assert f"--model runs:/{records[0].tags['uml.best_trial']}/model" in text
    assert f"The model that this sweep registered: runs:/{again[0].tags['uml.best_trial']}/model" in text


def answers(records: list[RunRecord]) -> Answers:
    sweep = collected(records)
    return answers_of([sweep], verdict_of(sweep), [])


def test_which_corpus_helps_is_told_by_the_sweep_that_knows_or_by_a_command(full: Report) -> None:
    text = text_of(full)
    assert "By sweep modalities: captions, alone: +6.0 points (95 % interval +5.3 to +6.7) at 1 shot, reliable;" in text
    assert "sounds, alone: 0.0 points (95 % interval −0.6 to +0.6) at 1 shot, not reliable" in text
    unknown = answers(mixing_records())
    assert unknown.corpora == ("This sweep cannot tell: captions and sounds take part together.",)
    assert unknown.command.endswith("--space modalities")
    assert answers(sweep_records(GAIN)).corpora == ("names, the only auxiliary corpus.",)
    with_pile = sweep_records({**GAIN, **ALTERNATIVES, "pile": 0.64})
    space = space_from_json(with_pile[0].space_json)
    arms = (*space.arms, Arm("pile", role="pile"))
    with_pile[0] = replace(with_pile[0], space_json=space_as_json(replace(space, arms=arms)))
    assert answers(with_pile).corpora[1].startswith("The unlabelled pile, without text: +3.0 points (95 % ")


def test_a_sweep_about_the_target_alone_says_so() -> None:
    arms = (Arm("ridge", role="ridge"), Arm("logistic", role="logistic"))
    found = answers(own_records(Space("?", arms, "ridge", "logistic", (0,)), {"ridge": 0.6, "logistic": 0.64}))
    assert found.helps == "No unpaired data: this sweep is about pictures alone."
    assert [line.partition(":")[0] for line in found.amounts] == [
        "Best over second best, logistic regression over ridge"
    ]
    assert found.corpora == ("None takes part.",)


def test_long_sentences_stand_once_on_the_page() -> None:
    report = report_in_words(modality_records())
    for part in report.verdict.conditions:
        assert text_of(report).count(part.text) == 1


def test_costs_in_cpu_and_gpu_seconds() -> None:
    (row,) = cost_rows([collected(few_shot_records())], [])
    assert (row["trials"], row["cpu_s"], row["gpu_s"]) == (150, 300.0, 75.0)
    assert row["samples"] == 150 * 51_200
    assert row["wall_s"] == 340.0


def test_a_sweep_s_parent_carries_means_and_differences() -> None:
    metrics = sweep_metrics(collected(few_shot_records()))
    assert metrics["sweep/1_shots/difference"] == pytest.approx(0.08, abs=0.005)
    assert metrics["sweep/16_shots/test_accuracy/unimodal"] == pytest.approx(0.84, abs=0.02)
    assert metrics["sweep/1_shots/difference_holm_p"] < 0.05 < metrics["sweep/16_shots/difference_holm_p"]
    assert not [name for name in sweep_metrics(collected([parent_record()])) if "difference" in name]


def test_selection_looks_at_accuracy_and_where_asked_at_cost_within_one_standard_error() -> None:
    trials = {
        "best": Candidate(0.80, 0.5, cost=100, val_rows=100),  # one standard error is 4 points
        "near": Candidate(0.77, 0.6, cost=20, val_rows=100),
        "far": Candidate(0.75, 0.6, cost=1, val_rows=100),
        "same": Candidate(0.80, 0.6, cost=90, val_rows=100),
    }
    assert selected(trials) == "best"
    assert selected(trials, count_cost=True) == "near"
    assert pareto_front(trials) == {"near", "far", "same"}
    assert selected({}) is None


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(full: Report, tmp_path: Path, width: int) -> None:
    """Nothing is cut off or needs scrolling sideways at a phone's width, text is dark enough, figures are drawn."""
    page = full.html.replace("</body>", f"<script>{INSPECT}</script></body>")
    listen = "onmessage = event => { document.title = 'x'; document.body.append(JSON.stringify(event.data)); }"
    frame = html.escape(page, quote=True)
    style = f"width:{width}px;height:900px;border:0"
    outer = f'<body><script>{listen}</script><iframe srcdoc="{frame}" style="{style}"></iframe>'
    (tmp_path / "outer.html").write_text(outer, encoding="utf-8")
    found = inspected(tmp_path / "outer.html", tmp_path)
    assert found["width"] == width
    assert found["content"] <= width, "the page is wider than the screen"
    assert found["faint"] == []
    assert found["drawn"] == found["images"] == len(full.figures)


def inspected(page: Path, directory: Path) -> dict[str, object]:
    """Open a page in a headless browser and return what its script found."""
    assert CHROMIUM is not None
    profile = f"--user-data-dir={directory / 'profile'}"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000", "--dump-dom", profile]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    body = html.unescape(done.stdout).rpartition("</iframe>")[2]
    return json.loads(body[body.index("{") : body.rindex("}") + 1])  # type: ignore[no-any-return]


def test_what_training_the_encoder_does_to_the_gain_has_a_table() -> None:
    arms = {"linear_probe": 0.6, "unimodal": 0.66, "uml_init": 0.73, "shuffled_init": 0.65, "unimodal_init": 0.67}
    arms |= {"frozen_unimodal": 0.60, "frozen_uml_init": 0.70, "partial_unimodal": 0.64, "partial_uml_init": 0.68}
    arms |= {"lora_unimodal": 0.65, "lora_uml_init": 0.70}
    records = sweep_records({**arms, "uml_init_trained_text": 0.71}, parent=parent_record("finetune"))
    sweep = collect_sweep(records, records[0])
    rows = {row.trained: row for row in backbone_rows(sweep)}
    assert list(rows) == [
        "nothing",
        "its last blocks",
        "low-rank adapters in it",
        "all of it",
        "text encoder too, against frozen",
    ]
    for trained, gain in zip(rows, (0.10, 0.04, 0.05, 0.07, -0.02), strict=True):
        assert rows[trained].difference.mean == pytest.approx(gain, abs=0.005)
    assert rows["nothing"].against == "frozen_unimodal"
    assert verdict_of(sweep).kind == "gain"
    text = report_in_words(records).html
    assert "What training the encoder does to the gain" in text
    assert set(arm_notes(sweep)) == set(sweep.arm_names()), "every arm is told"
    controls = sweep_records(GAIN)
    assert backbone_rows(collect_sweep(controls, controls[0])) == []
