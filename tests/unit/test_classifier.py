"""The estimator: scikit-learn's own checks, its verdict, its ways out, and what it says to bad input."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from uml_core import UnpairedClassifier
from uml_core.errors import InputError
from uml_core.models.closed_form.prior_model import unit_rows

NAMES = np.array([f"class {code:02d}" for code in range(20)])


def data(shots: int = 4, seed: int = 0, width: int = 40) -> dict[str, np.ndarray]:
    """A target, text in its space, text in another, and test rows of 20 classes."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((20, width))
    codes, test = np.repeat(np.arange(20), shots), np.repeat(np.arange(20), 15)
    text = np.repeat(np.arange(20), 3)
    return {
        "X": unit_rows(means[codes] + 2 * rng.standard_normal((len(codes), width))),
        "y": NAMES[codes],
        "T": means[text] + 2 * rng.standard_normal((len(text), width)),
        "narrow": rng.standard_normal((len(text), 9)),
        "labels": NAMES[text],
        "new": unit_rows(means[test] + 2 * rng.standard_normal((len(test), width))),
        "truth": NAMES[test],
    }


def test_scikit_learns_own_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check_estimator(UnpairedClassifier())


def test_text_helps_and_the_verdict_says_so() -> None:
    given = data()
    alone = UnpairedClassifier().fit(given["X"], given["y"])
    model = UnpairedClassifier().fit(given["X"], given["y"], auxiliary={"text": (given["T"], given["labels"])})
    assert model.score(given["new"], given["truth"]) > alone.score(given["new"], given["truth"]) + 0.02
    assert str(alone.verdict_).splitlines()[0] == "Ship the linear discriminant: there is no auxiliary corpus."
    assert model.verdict_.headline.startswith("Ship the prior head: +")
    assert model.verdict_.auxiliaries[0].aligned is True
    assert "spaces agree" in str(model.verdict_)
    assert not model.verdict_.undecided


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_relation_that_fails_for_some_classes_costs_nothing(shots: int, mirrored: bool) -> None:
    """Left halves of digits, with right halves of others: of one width and somewhat alike, but of no common space."""
    pictures, digits = load_digits(return_X_y=True)
    halves = np.split(pictures.reshape(-1, 8, 8), 2, axis=2)
    left, right = halves[0].reshape(-1, 32), halves[1][:, :, :: -1 if mirrored else 1].reshape(-1, 32)
    gains = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(digits))
        test, rest = order[:800], order[800:]
        train = np.concatenate([rest[digits[rest] == digit][:shots] for digit in range(10)])
        others = np.setdiff1d(rest, train)
        alone = UnpairedClassifier().fit(left[train], digits[train])
        ours = UnpairedClassifier().fit(
            left[train], digits[train], auxiliary={"right": (right[others], digits[others])}
        )
        gains.append(ours.score(left[test], digits[test]) - alone.score(left[test], digits[test]))
    assert np.mean(gains) > -0.01


def test_noise_adds_nothing_and_the_verdict_says_so() -> None:
    given = data()
    auxiliary = {"noise": (given["narrow"], given["labels"])}
    model = UnpairedClassifier().fit(given["X"], given["y"], auxiliary=auxiliary)
    alone = UnpairedClassifier().fit(given["X"], given["y"])
    np.testing.assert_array_equal(model.predict_proba(given["new"]), alone.predict_proba(given["new"]))
    assert model.verdict_.headline == "Ship the linear discriminant: no auxiliary corpus adds anything reliable."
    assert "another width" in str(model.verdict_)


def test_one_row_a_class_is_undecided() -> None:
    given = data(shots=1)
    auxiliary = {"text": (given["T"], given["labels"]), "noise": (given["narrow"], given["labels"])}
    model = UnpairedClassifier().fit(given["X"], given["y"], auxiliary=auxiliary)
    assert model.verdict_.undecided
    assert "one row a class cannot be left out" in str(model.verdict_)


def test_classes_that_only_an_auxiliary_corpus_has() -> None:
    given = data()
    known = np.isin(given["y"], NAMES[:15])
    auxiliary = {"text": (given["T"], given["labels"])}
    model = UnpairedClassifier(classes="union").fit(given["X"][known], given["y"][known], auxiliary=auxiliary)
    assert list(model.classes_) == list(NAMES)
    unseen = np.isin(given["truth"], NAMES[15:])
    assert model.score(given["new"][unseen], given["truth"][unseen]) > 0.3
    target_only = UnpairedClassifier().fit(given["X"][known], given["y"][known], auxiliary=auxiliary)
    assert list(target_only.classes_) == list(NAMES[:15])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_classifier_predicts_the_same(tmp_path: Path, normalize: bool) -> None:
    given = data()
    model = UnpairedClassifier(normalize=normalize).fit(given["X"], given["y"], {"text": (given["T"], given["labels"])})
    model.save(tmp_path / "model.safetensors")
    loaded = UnpairedClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(given["new"]), model.predict_proba(given["new"]))
    assert list(loaded.predict(given["new"])) == list(model.predict(given["new"]))
    assert loaded.verdict_ == model.verdict_
    assert loaded.get_params() == model.get_params()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_onnx_graph_gives_the_same_probabilities(tmp_path: Path, normalize: bool) -> None:
    import onnxruntime

    given = data()
    model = UnpairedClassifier(normalize=normalize).fit(given["X"], given["y"], {"text": (given["T"], given["labels"])})
    model.to_onnx(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    rows = 3 * given["new"].astype(np.float32)
    (probabilities,) = session.run(["probabilities"], {"embedding": rows})
    np.testing.assert_allclose(probabilities, model.predict_proba(rows), atol=1e-5)


def test_the_import_needs_neither_torch_nor_ray_nor_mlflow() -> None:
    code = "import sys; from uml_core import UnpairedClassifier; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    root = str(Path(__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert found.stdout.strip() == "set()", found.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auxiliary": [1, 2]}, "auxiliary is a list; expected a dict from a name to (embeddings, labels)"),
        ({"auxiliary": {"text": np.ones((3, 2))}}, "auxiliary['text'] is no pair"),
        ({"auxiliary": {"text": (np.ones((3, 2)), ["a"])}}, "auxiliary['text'] has 3 rows and labels of shape (1,)"),
        ({"auxiliary": {"text": (np.ones((1, 2)), ["cat"])}}, "shares no label with y: it has 'cat', y has 'class 00'"),
        ({"auxiliary": {"text": (np.full((1, 2), np.nan), ["class 00"])}}, "auxiliary['text']: Input"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, object], message: str) -> None:
    given = data()
    with pytest.raises(InputError) as caught:
        UnpairedClassifier().fit(given["X"], given["y"], **change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_choice_is_refused() -> None:
    given = data()
    with pytest.raises(InputError, match="classes is 'all'; expected one of 'target', 'union'"):
        UnpairedClassifier(classes="all").fit(given["X"], given["y"])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="holds no UnpairedClassifier"):
        UnpairedClassifier.load(tmp_path / "other.safetensors")


def test_a_corpus_whose_rows_are_all_alike_teaches_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 6)
    rows = np.eye(8)[labels] + 0.3 * rng.normal(size=(24, 8))
    alike = UnpairedClassifier().fit(rows, labels, {"text": (np.ones((8, 8)), np.arange(8) % 4)})
    assert not alike.head_.scales
    assert UnpairedClassifier().fit(np.zeros((8, 8)), np.arange(8) % 4, unlabelled=np.zeros((5, 8))).predict(rows).shape
