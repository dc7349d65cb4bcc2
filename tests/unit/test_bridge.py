"""Bridges: rows of other classes and texts of both tell where a class without a row lies, and wrong names do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.conftest import table
from uml_core import UnpairedClassifier
from uml_core.config import parse_experiment
from uml_core.corpora.readers import rows_of
from uml_core.data.same_names import same_names
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.models.closed_form.bridge import PENALTIES, Bridge, left_out_r2, predicted_prior, solutions
from uml_core.models.closed_form.prior_model import ClassPrior, unit_rows
from uml_core.models.closed_form.row_space import Array
from uml_core.models.closed_form.solved_head import solve_head

SEEN, UNSEEN, OTHERS, DIM, TEXT_DIM = 12, 6, 120, 40, 32
NAMES = np.array(
    [*(f"own-{code:03d}" for code in range(SEEN + UNSEEN)), *(f"far-{code:02d}" for code in range(OTHERS))]
)


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    """Texts of all classes, and a linear map from them to where their rows lie; both with noise."""
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((len(NAMES), TEXT_DIM))
    places = texts @ rng.standard_normal((TEXT_DIM, DIM)) + 1.0 * rng.standard_normal((len(NAMES), DIM)) + 3.0

    def rows(codes: np.ndarray) -> tuple[Array, np.ndarray]:
        return places[codes] + 2.0 * rng.standard_normal((len(codes), DIM)), NAMES[codes]

    own = np.arange(SEEN + UNSEEN)
    return {
        "train": rows(np.repeat(own[:SEEN], 4)),
        "test": rows(np.repeat(own, 30)),
        "text": (texts + 0.1 * rng.standard_normal(texts.shape), NAMES),
        "bridge": rows(np.repeat(np.arange(SEEN + UNSEEN, len(NAMES)), 3)),
    }


def accuracies(world: dict[str, Any], bridge: Any) -> tuple[float, float, UnpairedClassifier]:
    """Of classes with and without rows."""
    text, labels = world["text"]
    known = np.ones(len(NAMES), dtype=bool) if bridge is not None else np.char.startswith(NAMES, "own")
    model = UnpairedClassifier(classes="union").fit(
        *world["train"], auxiliary={"text": (text[known], labels[known])}, bridge=bridge
    )
    rows, true = world["test"]
    hits, is_unseen = model.predict(rows) == true, true >= NAMES[SEEN]
    assert model.classes_.tolist() == NAMES[: SEEN + UNSEEN].tolist(), "a bridge's classes are not the target's"
    return float(hits[~is_unseen].mean()), float(hits[is_unseen].mean()), model


def test_a_bridge_finds_classes_without_a_row_and_harms_no_other(world: dict[str, Any]) -> None:
    without, over = accuracies(world, None), accuracies(world, world["bridge"])
    assert over[1] > without[1] + 0.2
    assert over[0] > without[0] - 0.05
    assert "text over bridge" in over[2].head_.scales
    assert "as a map, left-out classes are predicted with an R² of 0." in str(over[2].verdict_)


def test_wrong_names_build_no_bridge(world: dict[str, Any]) -> None:
    rows, labels = world["bridge"]
    names, codes = np.unique(labels, return_inverse=True)
    refused = 0
    for seed in range(10):
        shuffled = np.random.default_rng(seed).permutation(names)[codes]
        *_, model = accuracies(world, (rows, shuffled))
        gate = next(gate for gate in model.head_.gates if gate.role == "bridge")
        refused += not gate.believed
        assert gate.believed or "text over bridge" not in model.head_.scales
    assert refused >= 8, "one of 40 passes by chance"


def test_left_out_classes_are_those_of_a_refit() -> None:
    rng = np.random.default_rng(1)
    texts, order = unit_rows(rng.standard_normal((30, 8))), rng.permutation(30)
    places = texts @ rng.standard_normal((8, 5)) + 0.3 * rng.standard_normal((30, 5))
    found = left_out_r2(solutions(texts @ texts.T), (places - places.mean(0)) @ (places - places.mean(0)).T, [order])
    for penalty, (r2,) in zip(PENALTIES, found, strict=True):
        renamed, misses, spread = places[order], 0.0, 0.0
        for code in range(30):
            rest = np.delete(np.arange(30), code)
            fitted = Ridge(alpha=penalty).fit(texts[rest], renamed[rest])
            misses += float(((fitted.predict(texts[[code]])[0] - renamed[code]) ** 2).sum())
            spread += float(((renamed[rest].mean(0) - renamed[code]) ** 2).sum())
        assert r2 == pytest.approx(1 - misses / spread, abs=1e-9)


def test_few_classes_build_no_bridge() -> None:
    few = ClassPrior("far", np.eye(4, DIM), np.ones(4, dtype=bool))
    text = ClassPrior("text", np.eye(4, TEXT_DIM), np.ones(4, dtype=bool))
    gate, _ = predicted_prior(Bridge("far", few, {"text": text}), text)
    assert (gate.believed, gate.orders) == (False, 0)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"bridge": (np.ones((3, DIM + 1)), ["far-000", "far-001", "far-002"])}, "bridge is 41 wide, and X is 40 wide"),
        ({"bridge": (np.ones((1, DIM)), ["elsewhere"])}, "no auxiliary corpus has a row of one"),
        ({"bridge": (np.ones((2, DIM)), ["far-000"])}, r"bridge has 2 rows and labels of shape \(1,\)"),
        ({"bridge": np.ones((3, DIM))}, r"bridge is no pair; expected \(embeddings of shape"),
        ({"bridge": (np.ones((1, DIM)), ["far-000"]), "auxiliary": None}, "no auxiliary corpus has a row of one"),
    ],
)
def test_what_cannot_be_a_bridge_is_refused(world: dict[str, Any], changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        UnpairedClassifier().fit(*world["train"], **{"auxiliary": {"text": world["text"]}, **changes})


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["Cat", "T-Rex!", "dog"], ["Cat", "T-Rex!"]), (["cats"], []), ([], [])],
)
def test_names_are_the_same_but_for_case_and_punctuation(names: list[str], expected: list[str]) -> None:
    assert list(same_names(names, ["cat", "t rex", "Ox"])) == expected


# The pipeline's rows: a target with two classes, a third that only names have, and a bridge that has one of them.
TARGET = table(np.arange(24).reshape(12, 2), [*"aaaabbbbabab"], ["train"] * 8 + ["test"] * 4)
TEXTS = table(np.arange(21).reshape(7, 3), ["a", "b", "c", "x", "y", "z", "z"])
FAR = table(np.arange(14).reshape(7, 2), ["x", "x", "y", "z", "B.", "B.", "nameless"])


def build(changes: dict[str, Any] | None = None, **tables: Any) -> TrainingData:
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in ("target", "names")}
    corpora["far"] = {**corpora["target"], "role": "bridge"}
    tree = {"name": "x", "store": "store", "target": "target", "corpora": corpora, "data": {"classes": "union"}}
    experiment = parse_experiment(tree).override(changes or {})
    return build_training_data(experiment, {"target": TARGET, "names": TEXTS, "far": FAR, **tables})


def test_rows_of_a_bridge_are_in_its_own_classes_and_texts_with_them() -> None:
    data = build()
    assert data.classes == ("a", "b", "c"), "x, y and z are the bridge's"
    (bridge,) = data.bridges
    assert bridge.classes == ("B.", "nameless", "x", "y", "z")
    assert [bridge.classes[code] for code in bridge.rows.labels] == ["x", "x", "y", "z", "B.", "B.", "nameless"]
    (texts,) = bridge.texts["names"]
    assert [bridge.classes[code] for code in texts.labels] == ["x", "y", "z", "z"]
    assert data.dropped == {"names": {}}
    assert "far: 1 classes of the bridge are named as one of the target's" in " ".join(data.warnings())


def test_classes_that_are_named_as_the_targets_can_be_left_out() -> None:
    (bridge,) = build({"data.bridge_overlap": "remove"}).bridges
    assert bridge.classes == ("nameless", "x", "y", "z")
    assert bridge.overlap == ("B.",)
    assert "left out" in bridge.words


def test_a_bridges_control_swaps_names_and_keeps_the_rows_of_a_class_together() -> None:
    true, swapped = (
        build(changes).bridges[0].rows.labels.tolist() for changes in ({}, {"corpora.far.control": "shuffled_labels"})
    )
    renamed = dict(zip(true, swapped, strict=True))
    assert [renamed[code] for code in true] == swapped
    assert sorted(renamed.values()) == [0, 1, 2, 3, 4]
    assert true != swapped


def test_a_bridges_class_is_the_targets_where_it_has_rows_to_test() -> None:
    splits = ["train"] * 8 + ["test"] * 4
    data = build(target=table(TARGET.embeddings, [*"aaaabbbbaxax"], splits))
    assert data.classes == ("a", "b", "c", "x")
    assert "x" in data.bridges[0].classes


@pytest.mark.parametrize(
    ("changes", "tables", "part"),
    [
        ({}, {"names": table(np.zeros((2, 3)), ["a", "b"])}, "no auxiliary corpus says anything of its classes"),
        ({}, {"far": table(np.zeros((2, 3)), ["x", "y"])}, "corpora.far is a bridge 3 wide, and the target is 2 wide"),
        ({}, {"far": table(np.zeros((2, 2)), [None, None])}, "has role bridge, and no labelled train rows"),
        ({"data.bridge_overlap": "remove"}, {"far": table(np.zeros((2, 2)), ["A", "b"])}, "no labelled train rows"),
        ({"corpora.names.control": "unrelated"}, {}, "no auxiliary corpus says anything of its classes"),
        ({"mixing.loss_weight.far": 1}, {}, r"names corpus 'far', which is a bridge \(role: bridge\)"),
        ({"objective": "self_supervised", "data.classes": "target"}, {}, "no corpus of role bridge"),
        ({"corpora.target.role": "bridge"}, {}, "target names corpus 'target', which is a bridge"),
    ],
)
def test_what_leads_nowhere_is_refused(changes: dict[str, Any], tables: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        build(changes, **tables)


def test_the_solved_head_goes_over_the_bridge(world: dict[str, Any]) -> None:
    rows, true = world["test"]
    tables = {"target": world["train"], "names": world["text"], "far": world["bridge"]}
    tables = {name: table(rows, labels.tolist()) for name, (rows, labels) in tables.items()}
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in tables}
    corpora["far"]["role"] = "bridge"
    tree = {"name": "x", "store": "s", "target": "target", "corpora": corpora, "data": {"classes": "union"}}
    experiment = parse_experiment({**tree, "model": {"head": "prior"}})
    unseen = true >= NAMES[SEEN]
    found = []
    for changes in ({}, {"corpora.names.control": "shuffled_labels"}, {"corpora.far.control": "shuffled_labels"}):
        changed = experiment.override(changes)
        data = build_training_data(changed, tables)
        weight, bias = solve_head(changed, data)
        predicted = np.array(data.classes)[(rows @ weight.numpy().T + bias.numpy()).argmax(axis=1)]
        found.append(float((predicted == true)[unseen].mean()))
    assert found[0] > max(found[1:]) + 0.2


def test_texts_of_a_bridge_have_an_encoder_that_joins_them_to_an_auxiliary_corpus(tmp_path: Any) -> None:
    for name in ("tench", "great_shark"):
        (tmp_path / "far" / name).mkdir(parents=True)
        (tmp_path / "far" / name / "1.png").write_bytes(b"")
    corpora = {
        "photos": {"modality": "image", "format": "folder", "path": "photos"},
        "names": {"modality": "text", "format": "table", "path": "names.jsonl"},
        "far": {"modality": "image", "format": "folder", "path": str(tmp_path / "far"), "role": "bridge"},
        "far_names": {"modality": "text", "format": "templates", "role": "bridge"},
    }
    experiment = parse_experiment({"name": "x", "store": "s", "target": "photos", "corpora": corpora})
    assert (experiment.auxiliaries, experiment.bridges) == (("names",), ("far",))
    assert [row.text for row in rows_of(experiment, "far_names")] == [
        "a photo of a great shark.",
        "a photo of a tench.",
    ]
    with pytest.raises(InputError, match=r"corpora\.far_names has role bridge, and neither the target's encoder nor"):
        experiment.override({"corpora.far_names.encoder": {"source": "package", "name": "other"}})
    with pytest.raises(InputError, match="no corpus of role bridge has rows of other classes"):
        experiment.override({"corpora.far.role": "shifted"})
