"""The method on arrays: a linear classifier that unpaired data of other modalities may improve, in closed form.

    from uml_core import UnpairedClassifier

    model = UnpairedClassifier().fit(X, y, auxiliary={"text": (T, text_labels)})
    model.predict(new_X)
    print(model.verdict_)

In: embeddings of the target with labels, and embeddings of any other modality, of any width, with labels of the same
classes; no row of one is paired with a row of another. Out: a scikit-learn classifier of the target's embeddings, and a
verdict on what the other data was worth. docs/method.md, A head whose prior the auxiliary corpora write.

Shape legend: N rows, D embedding width, E an auxiliary corpus's width, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

# The name that scikit-learn's developer's guide gives for this; without it `check_estimator` fails.
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from uml_core.data.same_names import same_names
from uml_core.errors import InputError, listing
from uml_core.models.closed_form.bridge import Bridge, bridge_name, over_bridges
from uml_core.models.closed_form.discriminant import prior_of_rows
from uml_core.models.closed_form.prior_head import PriorHead, fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Codes, unit_rows
from uml_core.models.closed_form.prior_verdict import PileVerdict, Verdict, pile_verdict, verdict_of
from uml_core.models.closed_form.row_space import Array, have_equal_lengths
from uml_core.models.closed_form.unlabelled import fit_pooled_head

Auxiliary = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
FORMAT_VERSION = 1
OPSET = 18


class UnpairedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear classifier in closed form whose prior auxiliary corpora write.

    Args:
        classes: "target" knows the classes that `y` has; "union" also those that only auxiliary corpora have.
        normalize: whether rows are brought to unit length; "auto" does so where their lengths hardly differ, as those
            of an encoder's embeddings.

    Attributes:
        classes_: labels (C,), in the order of the columns of `predict_proba`.
        coef_, intercept_, temperature_: probabilities = softmax((X coef_ᵀ + intercept_) / temperature_).
        normalized_: whether rows are brought to unit length.
        verdict_: what is shipped and what each auxiliary corpus is worth; print it.
        head_: all that was measured on the way (`PriorHead`); a loaded classifier has none.
    """

    def __init__(
        self, *, classes: Literal["target", "union"] = "target", normalize: bool | Literal["auto"] = "auto"
    ) -> None:
        self.classes = classes
        self.normalize = normalize

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        auxiliary: Auxiliary | None = None,
        sample_weight: npt.ArrayLike | None = None,
        bridge: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        unlabelled: npt.ArrayLike | None = None,
    ) -> UnpairedClassifier:
        """Fit to embeddings (N, D) and labels (N,); nothing is trained by steps, and no row is kept for validation.

        Args:
            X: embeddings of the target.
            y: their labels.
            auxiliary: by name, embeddings (M, E) of another modality and their labels (M,); any widths.
            sample_weight: how often each row counts (N,).
            bridge: embeddings (K, D) of other classes, in the target's space, and their labels (K,), which auxiliary
                corpora have as well; they tell what a class of that name looks like where `X` has no row of it.
            unlabelled: more embeddings of the target (U, D), without labels, of any mixture of classes. Rows that the
                model is to be tested on do not belong here.

        Raises:
            InputError: an argument is not of a form that can be used; it is a ValueError of one line.
        """
        _check_choice("classes", self.classes, ("target", "union"))
        _check_choice("normalize", self.normalize, (True, False, "auto"))
        given_ND, labels_N = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels_N)
        weights_N = check_sample_weight(sample_weight, given_ND, dtype=np.float64, ensure_non_negative=True)
        others = {name: _checked(f"auxiliary[{name!r}]", pair) for name, pair in _named(auxiliary).items()}
        over = None if bridge is None else _checked("bridge", bridge)
        bridged = labels_N[:0] if over is None else over[1]
        self.classes_ = _all_classes(np.unique(labels_N), others, bridged, union=self.classes == "union")
        bridges = [] if over is None else [_bridge(over, others, given_ND.shape[1], self.classes_)]
        is_auto = self.normalize == "auto"
        self.normalized_ = have_equal_lengths(given_ND, weights_N) if is_auto else bool(self.normalize)
        rows_ND = unit_rows(given_ND) if self.normalized_ else given_ND
        codes_N = np.searchsorted(self.classes_, labels_N)
        dim = rows_ND.shape[1]
        priors = [_prior(name, *pair, self.classes_, dim) for name, pair in others.items()]
        predicted, gates = over_bridges(priors, bridges)
        text_of = {bridge_name(each.name, text): text for each in bridges for text in each.texts}

        def fitted(without: str | None = None) -> PriorHead:
            kept = [p for p in (*priors, *predicted) if without not in (p.name, text_of.get(p.name, p.name))]
            return fit_prior_head(rows_ND, codes_N, len(self.classes_), kept, weights=weights_N)

        head = fitted()
        self.head_ = replace(head, gates=(*gates, *head.gates))
        self._take(self.head_)
        used = {*self.head_.scales, *self.head_.grams}
        verdict = verdict_of(self.head_, {name: fitted(without=name) for name in used})
        pile = (
            None if unlabelled is None else self._learn(unlabelled, rows_ND, codes_N, [*priors, *predicted], weights_N)
        )
        self.verdict_ = replace(verdict, pile=pile)
        return self

    def _learn(
        self, unlabelled: npt.ArrayLike, rows_ND: Array, codes_N: Codes, priors: list[ClassPrior], weights_N: Array
    ) -> PileVerdict:
        """Let the head learn from unlabelled rows."""
        given_UD = _checked_pile(unlabelled, dim=rows_ND.shape[1])
        pile_UD = unit_rows(given_UD) if self.normalized_ else given_UD
        fit = partial(fit_pooled_head, rows_ND, codes_N, len(self.classes_), pile=pile_UD, weights=weights_N)
        pooled = fit(priors)
        self._take(pooled.head)
        return pile_verdict(pooled, fit([]) if self.head_.scales or self.head_.grams else None)

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Calibrated probabilities (N, C) of embeddings (N, D)."""
        check_is_fitted(self)
        rows_ND: Array = validate_data(self, X, dtype=np.float64, reset=False)
        logits_NC = (unit_rows(rows_ND) if self.normalized_ else rows_ND) @ self.coef_.T + self.intercept_
        probabilities_NC: Array = softmax(logits_NC / self.temperature_, axis=1)
        return probabilities_NC

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The most probable label (N,) of embeddings (N, D)."""
        best_N = self.predict_proba(X).argmax(axis=1)
        labels_N: npt.NDArray[Any] = self.classes_[best_N]
        return labels_N

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: weights, with classes and verdict in its metadata; nothing of it is executed."""
        check_is_fitted(self)
        from safetensors.numpy import save_file

        description = self._description() | {"params": self.get_params(), "verdict": asdict(self.verdict_)}
        arrays = {
            "head.weight": np.ascontiguousarray(self.coef_),
            "head.bias": self.intercept_,
            "head.temperature": np.array([self.temperature_]),
        }
        save_file(arrays, str(path), metadata={"description": json.dumps(description, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> UnpairedClassifier:
        """Read what `save` wrote.

        Raises:
            InputError: the file is not one of those.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                description = json.loads((file.metadata() or {})["description"])
                arrays = {name: file.get_tensor(name) for name in ("head.weight", "head.bias", "head.temperature")}
        except (SafetensorError, KeyError, json.JSONDecodeError) as problem:
            raise InputError(
                f"{path} holds no UnpairedClassifier ({problem}); expected a file that save() wrote"
            ) from None
        model = cls(**description["params"])
        model.coef_, model.intercept_ = arrays["head.weight"], arrays["head.bias"]
        model.temperature_ = float(arrays["head.temperature"][0])
        model.classes_ = np.array(description["classes"])
        model.normalized_ = bool(description["input"]["normalize"])
        model.n_features_in_ = int(description["input"]["dim"])
        model.verdict_ = TypeAdapter(Verdict).validate_python(description["verdict"])
        return model

    def to_onnx(self, path: str | Path) -> None:
        """Write a graph from `embedding` (B, D) float32 to `logits` and `probabilities` (B, C), as `export` names them.

        Its logits are already divided by the temperature; classes are in its metadata.
        """
        check_is_fitted(self)
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        num_classes, dim = self.coef_.shape
        constants = {
            "weight": (self.coef_ / self.temperature_).astype(np.float32),
            "bias": (self.intercept_ / self.temperature_).astype(np.float32),
        }
        nodes, rows = [], "embedding"
        if self.normalized_:
            constants |= {"axis": np.array([1], dtype=np.int64), "shortest": np.array(1e-12, dtype=np.float32)}
            nodes = [
                helper.make_node("ReduceL2", ["embedding", "axis"], ["length"], keepdims=1),
                helper.make_node("Max", ["length", "shortest"], ["divisor"]),
                helper.make_node("Div", ["embedding", "divisor"], ["unit"]),
            ]
            rows = "unit"
        nodes += [
            helper.make_node("Gemm", [rows, "weight", "bias"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
        graph = helper.make_graph(
            nodes,
            "head",
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", num_classes])
                for name in ("logits", "probabilities")
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        helper.set_model_props(model, {"description": json.dumps(self._description(), ensure_ascii=False)})
        onnx.checker.check_model(model, full_check=True)
        Path(path).write_bytes(model.SerializeToString())

    def _take(self, head: PriorHead) -> None:
        self.coef_, self.intercept_, self.temperature_ = head.weight.T.copy(), head.bias, head.temperature

    def _description(self) -> dict[str, Any]:
        num_classes, dim = self.coef_.shape
        return {
            "format_version": FORMAT_VERSION,
            "input": {"name": "embedding", "dim": dim, "dtype": "float32", "normalize": bool(self.normalized_)},
            "outputs": ["logits", "probabilities"],
            "num_classes": num_classes,
            "classes": self.classes_.tolist(),
        }


def _check_choice(name: str, given: object, allowed: tuple[object, ...]) -> None:
    if not any(given is each or (isinstance(given, str) and given == each) for each in allowed):
        raise InputError(f"{name} is {given!r}; expected one of {listing(map(repr, allowed))}")


def _named(auxiliary: object) -> Mapping[str, Any]:
    """The auxiliary corpora by name.

    Raises:
        InputError: they are given in another form.
    """
    if auxiliary is None:
        return {}
    if not isinstance(auxiliary, Mapping):
        raise InputError(
            f"auxiliary is a {type(auxiliary).__name__}; expected a dict from a name to (embeddings, labels), "
            'for example {"text": (T, labels)}'
        )
    return auxiliary


def _checked(name: str, pair: Any) -> tuple[Array, npt.NDArray[Any]]:
    """One corpus as arrays; `name` is what messages call it.

    Raises:
        InputError: it is no pair, or its rows and labels do not go together.
    """
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"{name} is no pair; expected (embeddings of shape (rows, width), labels)")
    labels_M = np.asarray(pair[1])
    try:
        rows_ME: Array = check_array(pair[0], dtype=np.float64, input_name=name)
    except ValueError as problem:
        raise InputError(f"{name}: {problem}") from None
    if labels_M.shape != (len(rows_ME),):
        raise InputError(
            f"{name} has {len(rows_ME)} rows and labels of shape {labels_M.shape}; "
            f"expected one label a row, shape ({len(rows_ME)},)"
        )
    return rows_ME, labels_M


def _checked_pile(unlabelled: npt.ArrayLike, *, dim: int) -> Array:
    """Unlabelled rows as an array.

    Raises:
        InputError: they are not of the target's width, or not finite.
    """
    try:
        pile_UD: Array = check_array(unlabelled, dtype=np.float64, input_name="unlabelled")
    except ValueError as problem:
        raise InputError(f"unlabelled: {str(problem).splitlines()[0]}") from None
    if pile_UD.shape[1] != dim:
        raise InputError(
            f"unlabelled has rows {pile_UD.shape[1]} wide, and X {dim}; expected embeddings of the target's encoder"
        )
    return pile_UD


def _all_classes(
    own: npt.NDArray[Any],
    others: Mapping[str, tuple[Array, npt.NDArray[Any]]],
    bridged: npt.NDArray[Any],
    *,
    union: bool,
) -> npt.NDArray[Any]:
    """The classes of the target, or also those of auxiliary corpora that a bridge does not have.

    Raises:
        InputError: an auxiliary corpus has no label of the target's.
    """
    for name, (_, labels_M) in others.items():
        if not set(labels_M.tolist()) & set(own.tolist()):
            theirs, ours = (listing(map(repr, labels.tolist())) for labels in (np.unique(labels_M), own))
            raise InputError(
                f"auxiliary[{name!r}] shares no label with y: it has {theirs}, y has {ours}; "
                "both must name the same classes alike"
            )
    added = [labels_M[~np.isin(labels_M, bridged)] for _, labels_M in others.values()]
    return np.unique(np.concatenate([own, *added])) if union else own


def _prior(name: str, rows_ME: Array, labels_M: npt.NDArray[Any], classes_C: npt.NDArray[Any], dim: int) -> ClassPrior:
    known_M = np.isin(labels_M, classes_C)
    codes = np.searchsorted(classes_C, labels_M[known_M])
    return prior_of_rows(name, rows_ME[known_M], codes, len(classes_C), dim=dim)


def _bridge(
    pair: tuple[Array, npt.NDArray[Any]],
    others: Mapping[str, tuple[Array, npt.NDArray[Any]]],
    dim: int,
    target_classes: npt.NDArray[Any],
) -> Bridge:
    """The bridge, and what auxiliary corpora say of its classes.

    Raises:
        InputError: its width is not the target's, or no auxiliary corpus has one of its labels.
    """
    rows_KD, labels_K = pair
    if rows_KD.shape[1] != dim:
        raise InputError(f"bridge is {rows_KD.shape[1]} wide, and X is {dim} wide; embed both with one encoder")
    classes = np.unique(labels_K)
    described = {name: each for name, each in others.items() if np.isin(each[1], classes).any()}
    if not described:
        raise InputError(
            f"bridge has labels {listing(map(repr, classes.tolist()))}, and no auxiliary corpus has a row of one; "
            "add texts about them to an auxiliary corpus"
        )

    def prototypes(name: str, rows_ME: Array, labels_M: npt.NDArray[Any]) -> ClassPrior:
        known_M = np.isin(labels_M, classes)
        return ClassPrior.from_rows(name, rows_ME[known_M], np.searchsorted(classes, labels_M[known_M]), len(classes))

    texts = {name: prototypes(name, *each) for name, each in described.items()}
    overlap = same_names(map(str, classes.tolist()), map(str, target_classes.tolist()))
    return Bridge("bridge", prototypes("bridge", rows_KD, labels_K), texts, len(overlap))
