"""An unlabelled pile: it helps whatever its shares of classes are, and foreign rows harm nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_classifier import NAMES
from uml_core import UnpairedClassifier
from uml_core.errors import InputError
from uml_core.models.closed_form.unlabelled import fit_pooled_head

CLASSES, WIDTH = 20, 40


def drawn(seed: int, shots: int, pile: np.ndarray) -> dict[str, np.ndarray]:
    """Labelled rows, a pile with so many rows of each class, test rows, and rows of other classes."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((2 * CLASSES, WIDTH))
    stretch = np.exp(0.7 * rng.standard_normal(WIDTH))  # classes vary more in some directions

    def rows(codes: np.ndarray) -> np.ndarray:
        return means[codes] + stretch * rng.standard_normal((len(codes), WIDTH))

    y, piled, test = (np.repeat(np.arange(CLASSES), counts) for counts in (shots, pile, 25))
    foreign = rows(CLASSES + np.repeat(np.arange(CLASSES), 20))
    return {"X": rows(y), "y": y, "pile": rows(piled), "new": rows(test), "truth": test, "foreign": foreign}


def gain(given: dict[str, np.ndarray], pile: np.ndarray) -> float:
    alone = UnpairedClassifier().fit(given["X"], given["y"])
    pooled = UnpairedClassifier().fit(given["X"], given["y"], unlabelled=pile)
    return pooled.score(given["new"], given["truth"]) - alone.score(given["new"], given["truth"])


@pytest.mark.parametrize(
    "pile",
    [np.full(CLASSES, 20), np.geomspace(50, 1, CLASSES).astype(int), np.repeat([0, 40], CLASSES // 2)],
    ids=["balanced", "geometric", "half of the classes missing"],
)
@pytest.mark.parametrize("shots", [1, 2])
def test_it_helps_whatever_its_shares_are(shots: int, pile: np.ndarray) -> None:
    gains = [gain(given, given["pile"]) for given in (drawn(seed, shots, pile) for seed in range(1, 3))]
    assert np.mean(gains) > 0.015


def test_a_pile_of_other_classes_alone_is_left_out() -> None:
    gains = [gain(given, given["foreign"]) for given in (drawn(seed, 2, np.full(CLASSES, 1)) for seed in range(3))]
    assert np.mean(gains) > -0.005


def test_a_pile_that_left_out_labels_speak_against_is_left_out() -> None:
    given = drawn(0, 3, np.full(CLASSES, 1))
    misleading = -given["X"]
    pooled = fit_pooled_head(given["X"], given["y"], CLASSES, [], misleading)
    alone = UnpairedClassifier(normalize=False).fit(given["X"], given["y"])
    assert pooled.voice == 0
    np.testing.assert_allclose(pooled.head.weight, alone.coef_.T)


def test_the_shares_of_classes_in_the_pile_are_found() -> None:
    counts = np.geomspace(60, 1, CLASSES).astype(int)
    given = drawn(1, 8, counts)
    shares = fit_pooled_head(given["X"], given["y"], CLASSES, [], given["pile"]).shares
    assert np.corrcoef(shares, counts)[0, 1] > 0.9


def test_the_verdict_tells_the_pile_from_the_text(tmp_path: Path) -> None:
    given = drawn(1, 2, np.full(CLASSES, 20))
    text = {
        "text": (
            np.repeat(given["new"].reshape(CLASSES, 25, WIDTH).mean(axis=1), 2, axis=0),
            np.repeat(np.arange(CLASSES), 2),
        )
    }
    model = UnpairedClassifier().fit(given["X"], given["y"], text, unlabelled=given["pile"])
    pile = model.verdict_.pile
    assert pile is not None
    assert pile.gain is not None
    assert pile.auxiliaries is not None
    assert "unlabelled pile: worth +" in str(model.verdict_)
    assert "auxiliary corpora over the pile alone: +" in str(model.verdict_)
    model.save(tmp_path / "model.safetensors")
    loaded = UnpairedClassifier.load(tmp_path / "model.safetensors")
    assert str(loaded.verdict_) == str(model.verdict_)
    np.testing.assert_array_equal(loaded.predict_proba(given["new"]), model.predict_proba(given["new"]))


def test_one_row_a_class_cannot_judge_it() -> None:
    given = drawn(0, 1, np.full(CLASSES, 20))
    model = UnpairedClassifier().fit(NAMES[given["y"]][:, None] == NAMES, NAMES[given["y"]], unlabelled=np.eye(CLASSES))
    assert "one row a class cannot be left out to judge it" in str(model.verdict_)


@pytest.mark.parametrize(
    ("pile", "message"),
    [
        (np.ones((3, WIDTH - 1)), "unlabelled has rows 39 wide, and X 40; expected embeddings of the target's encoder"),
        (np.full((3, WIDTH), np.nan), "unlabelled: Input unlabelled contains NaN"),
        ([], "unlabelled: "),
    ],
)
def test_a_pile_that_cannot_be_used(pile: np.ndarray, message: str) -> None:
    given = drawn(0, 1, np.full(CLASSES, 1))
    with pytest.raises(InputError, match=message) as raised:
        UnpairedClassifier().fit(given["X"], given["y"], unlabelled=pile)
    assert "\n" not in str(raised.value)
