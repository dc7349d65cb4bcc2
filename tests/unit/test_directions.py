"""Each corpus as the target in turn: the experiments, and the one table over their sweeps."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.directions.step import chosen_targets, table_rows, table_text, with_target
from tests.sweep_records import parent_record, trial
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.reporting.collect import latest_sweeps
from uml_core.reporting.page import build_report
from uml_core.tracking.records import RunRecord

CORPORA = ("photos", "names", "sounds")


def experiment(**changes: Any) -> Experiment:
    vectors = {"modality": "vector", "format": "embeddings", "path": "p"}
    corpora = dict.fromkeys(CORPORA, vectors) | {"noise": {**vectors, "control": "noise"}}
    return parse_experiment({"name": "x", "store": "s", "target": "photos", "corpora": corpora}).override(changes)


def sweep_of(target: str, accuracy: dict[str, float]) -> list[RunRecord]:
    parent = parent_record("modalities", headline="x", uml_target=target, uml_corpora=",".join(CORPORA))
    return [
        parent,
        *(trial(parent, arm, seed, value + 0.01 * seed) for arm, value in accuracy.items() for seed in range(3)),
    ]


RECORDS = [
    *sweep_of("photos", {"unimodal": 0.5, "names": 0.6, "sounds": 0.52, "names+sounds": 0.61, "names_init": 0.65}),
    *sweep_of("sounds", {"unimodal": 0.2, "names": 0.25, "photos": 0.19, "photos+names": 0.24}),
]


def test_another_target_drops_what_was_set_for_it_as_an_auxiliary() -> None:
    ours = experiment(
        **{
            "mixing.loss_weight": {"names": 0.3, "sounds": 0.5, "noise": 0.0},
            "data.auxiliary_shots": {"names": 4},
            "model.init_corpus": "names",
        }
    )
    turned = with_target(ours, "names")
    assert turned.auxiliaries == ("photos", "sounds", "noise")
    assert dict(turned.mixing.loss_weight) == {"sounds": 0.5, "noise": 0.0}
    assert dict(turned.data.auxiliary_shots) == {}
    assert turned.model.init_corpus is None
    assert with_target(ours, "sounds").model.init_corpus == "names"
    assert with_target(ours, "photos") is ours


def test_the_own_target_comes_last_and_controls_are_none() -> None:
    assert chosen_targets(experiment()) == ["names", "sounds", "photos"]
    assert chosen_targets(experiment(), ["photos", "names"]) == ["names", "photos"]
    with pytest.raises(InputError, match="did you mean 'sounds'"):
        chosen_targets(experiment(), ["sound"])
    with pytest.raises(InputError, match="corpora that can be one: photos, names, sounds"):
        chosen_targets(experiment(), ["noise"])
    with pytest.raises(InputError, match="has 2 corpora"):
        chosen_targets(experiment(**{"corpora.sounds.control": "noise"}))


def test_one_table_of_all_directions() -> None:
    rows = table_rows(list(latest_sweeps(RECORDS).values()))
    means = {(*row["beside"], row["head_init"], row["target"]): round(row["test_accuracy"], 2) for row in rows}
    assert means == {
        (False, "photos"): 0.51,
        (False, "sounds"): 0.21,
        ("names", False, "photos"): 0.61,
        ("names", False, "sounds"): 0.26,
        ("names", True, "photos"): 0.66,
        ("photos", False, "sounds"): 0.2,
        ("sounds", False, "photos"): 0.53,
        ("names", "photos", False, "sounds"): 0.25,
        ("names", "sounds", False, "photos"): 0.62,
    }
    head, alone, *others = table_text(rows).splitlines()
    assert head.split() == ["beside", "the", "target", "photos", "sounds"]
    assert alone.split() == ["the", "target", "alone", "51.0", "21.0"]
    assert others[0].split() == ["names", "61.0", "(+10.0)", "26.0", "(+5.0)"]
    assert others[1].split() == ["names,", "head", "from", "class", "means", "66.0", "(+15.0)", "–"]
    assert others[2].split() == ["photos", "–", "20.0", "(−1.0)"]
    assert [line.rpartition("  ")[0].split("  ")[0] for line in others[3:]] == [
        "sounds",
        "names + photos",
        "names + sounds",
    ]


def test_the_page_names_the_targets_of_sweeps_of_one_space() -> None:
    page = build_report("x", RECORDS, tracking_uri="sqlite:///x.db")
    assert page.html.count("<h2>Sweep modalities for ") == 2
    names = [figure.name for figure in page.figures]
    assert len(set(names)) == len(names)
    alone = build_report("x", [*RECORDS[:16]], tracking_uri="sqlite:///x.db")
    assert "<h2>Sweep modalities</h2>" in alone.html
