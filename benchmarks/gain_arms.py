"""One measurement of `benchmarks.gain`: a task read from its folder, rows drawn from it, and every arm on those rows.

Shape legend: N rows, D embedding width, C classes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uml_core.classifier import UnpairedClassifier
from uml_core.config import CorpusConfig
from uml_core.corpora.ready.adopt import stream_ready
from uml_core.corpora.rows import Row
from uml_core.data.same_names import same_names
from uml_core.errors import InputError, listing
from uml_core.models.closed_form.prior_baselines import logistic_head, zero_shot_head
from uml_core.models.closed_form.prior_head import fit_prior_head
from uml_core.models.closed_form.prior_model import ClassPrior, Point, Problem, unit_rows
from uml_core.models.closed_form.row_space import RowSpace
from uml_core.models.closed_form.temperature import fit_temperature

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.str_]
Rows = tuple[Array, Labels]
Record = dict[str, Any]

SHOTS_OF_SEEN, UNSEEN_SHARE = 8, 0.25  # at 0 shots
# name: (normalize of the classifier, whether the mean of the rows drawn is taken off first); the first is the product's
SPECIFICATIONS: dict[str, tuple[Any, bool]] = {
    "auto": ("auto", False),
    "raw": (False, False),
    "unit": (True, False),
    "raw, centred": (False, True),
    "unit, centred": (True, True),
}
BRIDGE = "bridge/"
OVER_BRIDGE = ("bridge", "bridge_other_names", "bridge_shuffled")
BRIDGES = (*OVER_BRIDGE, "bridge_nameless")
PILE = "unlabelled"
PILES = ("pile", "pile_alone")
ISOTROPIC_PENALTIES = np.geomspace(0.01, 1000.0, 31)
PROTOCOL = 1  # raise it when a draw or an arm changes: results of another protocol are not used again
MODELS = Path(__file__).parents[1] / "uml_core"


@dataclass(frozen=True)
class Task:
    """One target, and what else is known of its classes."""

    name: str
    use: str  # development, confirming, or given
    content: str  # digest of the files
    train: Rows
    test: Rows
    others: Mapping[str, Rows]
    bridge: Rows | None = None  # its labels begin with BRIDGE, so that none is a class of the target
    bridge_others: Mapping[str, Rows] = field(default_factory=dict)  # what continues each of `others` for its classes
    pile: Array | None = None  # more rows of the target, none of them a test row

    @functools.cached_property
    def classes(self) -> Labels:
        return np.unique(self.train[1])


@dataclass(frozen=True)
class Job:
    """One draw of rows, and the arms to measure on it."""

    folder: Path
    specification: str
    shots: int
    seed: int
    arms: tuple[str, ...]


@functools.lru_cache(maxsize=2)
def read_task(folder: Path) -> Task:
    """Read a folder.

    Raises:
        InputError: it is no folder, lacks a file, or a file cannot be used; it is one line.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give folders with images.npy, images.jsonl and the same of text")
    settings = _settings(folder)
    target = settings.get("target", "images")
    arrays = sorted(file.stem for file in folder.glob("*.npy") if file.stem != PILE)
    if target not in arrays:
        raise InputError(f"{folder} has no {target}.npy, the target; it has {listing(arrays) or 'no .npy at all'}")
    if len(arrays) < 2:
        raise InputError(f"{folder} has {target}.npy alone; expected another modality beside it, for example text.npy")
    modalities = {name: _read_modality(folder, name) for name in arrays}
    rows_ND, labels_N, splits_N = modalities.pop(target)
    train, test = splits_N == "train", (splits_N == "test") & np.isin(labels_N, labels_N[splits_N == "train"])
    if len(np.unique(labels_N[train])) < 2 or not test.any():
        raise InputError(f"{folder}/{target}.jsonl needs train rows of two classes, and test rows of the same classes")
    far = {name: modalities.pop(name) for name in arrays if name.partition("-")[0] == "bridge"}
    others = {}
    for name, (other_ME, labels_M, splits_M) in modalities.items():
        known = (splits_M == "train") & np.isin(labels_M, labels_N[train])
        if not known.any():
            raise InputError(f"{folder}/{name}.jsonl has no train row of a class of {target}; name classes alike")
        others[name] = (other_ME[known], labels_M[known])
    bridge, bridge_others = _bridge(folder, far, others, rows_ND.shape[1]) if far else (None, {})
    pile = _pile(folder, rows_ND[splits_N == "test"]) if (folder / f"{PILE}.npy").exists() else None
    files = [folder / f"{name}{end}" for name in [target, *others, *far] for end in (".npy", ".jsonl")]
    return Task(
        name=folder.resolve().name,
        use=settings.get("use", "given"),
        content=_digest(files if pile is None else [*files, folder / f"{PILE}.npy"]),
        train=(rows_ND[train], labels_N[train]),
        test=(rows_ND[test], labels_N[test]),
        others=others,
        bridge=bridge,
        bridge_others=bridge_others,
        pile=pile,
    )


def _bridge(
    folder: Path, far: Mapping[str, tuple[Array, Labels, Labels]], others: Mapping[str, Rows], dim: int
) -> tuple[Rows, dict[str, Rows]]:
    """The bridge's rows, and those that continue other modalities, by modality."""
    texts = {name.partition("-")[2]: name for name in far if name != "bridge"}
    if "bridge" not in far or far["bridge"][0].shape[1] != dim or not texts or not texts.keys() <= others.keys():
        raise InputError(
            f"{folder} has {listing(f'{name}.npy' for name in far)}; a bridge is bridge.npy, as wide as the target, "
            f"and bridge-NAME.npy of a modality NAME ({listing(others)})"
        )

    def prefixed(name: str) -> Rows:
        rows, labels, splits = far[name]
        return rows[splits == "train"], np.array([f"{BRIDGE}{label}" for label in labels[splits == "train"]])

    return prefixed("bridge"), {other: prefixed(name) for other, name in texts.items()}


def _pile(folder: Path, test_ND: Array) -> Array:
    """The unlabelled rows (U, D); a test row among them would be seen before it judges."""
    rows_UD, _ = _usable_rows(folder, PILE)
    if rows_UD.shape[1] != test_ND.shape[1]:
        raise InputError(f"{folder}/{PILE}.npy is {rows_UD.shape[1]} wide, and the target {test_ND.shape[1]}")
    if repeated := int(_is_among(rows_UD, test_ND).sum()):
        raise InputError(f"{folder}/{PILE}.npy holds {repeated} test rows of the target; leave them out")
    return rows_UD


def _is_among(rows_ND: Array, others_MD: Array) -> npt.NDArray[np.bool_]:
    """Which rows (N,) are equal to one of others (M, D)."""
    known = {row.tobytes() for row in others_MD}
    return np.array([row.tobytes() in known for row in rows_ND], dtype=bool)


def _settings(folder: Path) -> dict[str, str]:
    file = folder / "task.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(value, str) for value in settings.values()):
        raise InputError(f'{file} is no JSON object of strings; for example {{"target": "sounds"}}')
    return settings


def _read_modality(folder: Path, name: str) -> tuple[Array, Labels, Labels]:
    """Rows (N, D) with their labels and splits (N,)."""
    if not (folder / f"{name}.jsonl").is_file():
        raise InputError(f"{folder} has {name}.npy but no {name}.jsonl; expected a line a row with label and split")
    embeddings_ND, rows = _usable_rows(folder, name)
    if any(row.label is None for row in rows):
        raise InputError(f"{folder}/{name}.jsonl has rows without a label; every row needs one")
    labels, splits = ([getattr(row, each) for row in rows] for each in ("label", "split"))
    return embeddings_ND, np.array(labels, dtype=str), np.array(splits, dtype=str)


def _usable_rows(folder: Path, name: str) -> tuple[Array, list[Row]]:
    """Embeddings (N, D), and what the file beside them says of each."""
    corpus = CorpusConfig(modality="vector", format="embeddings", path=str(folder / f"{name}.npy"))
    chunks = list(stream_ready(name, corpus))
    rejected = [row.fault for chunk in chunks for row in chunk.rejected]
    if rejected:
        raise InputError(f"{folder}/{name}.npy has {len(rejected)} rows that cannot be used: {rejected[0]}")
    embeddings_ND = np.concatenate([chunk.embeddings for chunk in chunks]).astype(np.float64)
    return embeddings_ND, [row for chunk in chunks for row in chunk.rows]


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def drawn_rows(task: Task, shots: int, seed: int) -> tuple[Rows, Labels]:
    """Train rows, `shots` of each class or all it has, and the classes that have none."""
    rng = np.random.default_rng([seed, shots, 0])
    order_C = rng.permutation(task.classes)
    unseen = order_C[: max(1, round(UNSEEN_SHARE * len(order_C)))] if shots == 0 else order_C[:0]
    picked = [
        rng.permutation(np.flatnonzero(task.train[1] == label))[: shots or SHOTS_OF_SEEN]
        for label in task.classes
        if label not in unseen
    ]
    chosen = np.concatenate(picked)
    return (task.train[0][chosen], task.train[1][chosen]), unseen


def shuffled(others: Mapping[str, Rows], classes: Labels, seed: int) -> dict[str, Rows]:
    """The same rows under other classes' names: each class gets those of the next one in an order by lot."""
    order = np.random.default_rng([seed, 0, 1]).permutation(classes)
    renamed = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return {
        name: (rows, np.array([renamed.get(label, label) for label in labels.tolist()]))
        for name, (rows, labels) in others.items()
    }


def noise(others: Mapping[str, Rows], seed: int) -> dict[str, Rows]:
    """Rows of Gaussian noise with the mean and spread of every coordinate, under the true names."""
    rng = np.random.default_rng([seed, 0, 2])
    return {
        name: (rows.mean(axis=0) + rows.std(axis=0) * rng.standard_normal(rows.shape), labels)
        for name, (rows, labels) in others.items()
    }


def over_bridge(task: Task, arm: str, seed: int) -> tuple[dict[str, Rows], Rows]:
    """The other modalities with what they say of a bridge's classes, and the bridge: as it is, without the classes that
    are named as the target's (bridge_other_names), or with its names permuted (bridge_shuffled)."""
    assert task.bridge is not None
    rows, labels = task.bridge
    if arm == "bridge_other_names":
        same = same_names((label.removeprefix(BRIDGE) for label in labels.tolist()), task.classes.tolist())
        kept = ~np.isin(labels, [f"{BRIDGE}{label}" for label in same])
        rows, labels = rows[kept], labels[kept]
    if arm == "bridge_shuffled":
        names, codes = np.unique(labels, return_inverse=True)
        labels = np.random.default_rng([seed, 0, 3]).permutation(names)[codes]
    joined = dict(task.others)
    for name, (far_ME, far_labels_M) in task.bridge_others.items():
        own_ME, own_labels_M = joined[name]
        kept = np.isin(far_labels_M, labels)
        joined[name] = np.concatenate([own_ME, far_ME[kept]]), np.concatenate([own_labels_M, far_labels_M[kept]])
    return joined, (rows, labels)


def measure(job: Job) -> list[Record]:
    """A record an arm."""
    task = read_task(job.folder)
    (rows_ND, labels_N), unseen = drawn_rows(task, job.shots, job.seed)
    normalize, centres = SPECIFICATIONS[job.specification]
    mean_D = rows_ND.mean(axis=0) if centres else np.zeros(rows_ND.shape[1])
    drawn_ND, rows_ND, test_ND = rows_ND, rows_ND - mean_D, task.test[0] - mean_D
    known = "union" if job.shots == 0 else "target"

    def fitted(
        others: Mapping[str, Rows] | None, bridge: Rows | None = None, pile: Array | None = None
    ) -> UnpairedClassifier:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The number of unique classes")  # one row a class
            model = UnpairedClassifier(classes=known, normalize=normalize)
            return model.fit(rows_ND, labels_N, others, bridge=bridge, unlabelled=pile)

    def classifier(
        others: Mapping[str, Rows] | None, bridge: Rows | None = None, pile: Array | None = None
    ) -> tuple[Labels, Record]:
        model = fitted(others, bridge, pile)
        used = sorted({*model.head_.scales, *model.head_.grams})
        return model.predict(test_ND), {"kind": model.head_.kind, "believed": used}

    def with_pile(others: Mapping[str, Rows] | None) -> tuple[Labels, Record]:
        assert task.pile is not None
        return classifier(others, pile=task.pile[~_is_among(task.pile, drawn_ND)] - mean_D)

    is_unit = fitted(None).normalized_
    own, judged = (unit_rows(each) if is_unit else each for each in (rows_ND, test_ND))
    swapped = unseen if job.shots == 0 else task.classes
    arms: dict[str, Callable[[], tuple[Labels, Record]]] = {
        "discriminant": lambda: classifier(None),
        "ridge": lambda: (_ridge(own, labels_N, judged), {}),
        "prior": lambda: classifier(task.others),
        "shuffled": lambda: classifier(shuffled(task.others, swapped, job.seed)),
        "noise": lambda: classifier(noise(task.others, job.seed)),
        "logistic": lambda: (_logistic(own, labels_N, judged), {}),
        "isotropic": lambda: (_isotropic(own, labels_N, judged), {}),
        "zero_shot": lambda: (_zero_shot(task, judged), {}),
        "zero_shot_centred": lambda: (_zero_shot(task, judged - own.mean(axis=0)), {}),
        **{
            arm: functools.partial(lambda arm: classifier(*over_bridge(task, arm, job.seed)), arm)
            for arm in OVER_BRIDGE
        },
        "bridge_nameless": lambda: (_nameless(task, own, labels_N, judged), {}),
        "pile": lambda: with_pile(task.others),
        "pile_alone": lambda: with_pile(None),
    }
    records = []
    for arm in job.arms:
        predicted_N, facts = arms[arm]()
        hits = predicted_N == task.test[1]
        record = {**key_of(job, arm), "use": task.use, "classes": len(task.classes), "accuracy": float(hits.mean())}
        if job.shots == 0:
            without_rows = np.isin(task.test[1], unseen)
            accuracies = [float(hits[each].mean()) for each in (~without_rows, without_rows)]
            record |= {"seen": accuracies[0], "unseen": accuracies[1]}
            record["accuracy"] = 2 * accuracies[0] * accuracies[1] / max(sum(accuracies), 1e-12)
        records.append(record | facts)
    return records


def key_of(job: Job, arm: str) -> Record:
    """What tells one measurement from another; results of another head, data or protocol are others."""
    task = read_task(job.folder)
    code = (
        _code("models/closed_form/prior_baselines.py") if arm == "logistic" or arm.startswith("zero_shot") else _code()
    )
    draw = {"specification": job.specification, "shots": job.shots, "seed": job.seed}
    return {"task": task.name, "content": task.content, **draw, "arm": arm, "code": code, "protocol": PROTOCOL}


@functools.cache
def _code(*files: str) -> str:
    heads = [MODELS / "classifier.py", *MODELS.glob("models/closed_form/*.py")]
    return _digest([MODELS / file for file in sorted(files)] or sorted(heads))


def _logistic(rows_ND: Array, labels_N: Labels, test_ND: Array) -> Labels:
    """By `logistic_head` in the rows' own space: the same answer, but fast where there are fewer rows than columns."""
    mean_D = rows_ND.mean(axis=0)
    left, values, axes = np.linalg.svd(rows_ND - mean_D, full_matrices=False)
    classes, codes = np.unique(labels_N, return_inverse=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "divide by zero")  # a penalty so small that a left-out label has odds of 0
        weight, bias = logistic_head((left * values).astype(np.float32), codes, len(classes))
    return classes[((test_ND - mean_D) @ axes.T @ weight + bias).argmax(axis=1)]


def _ridge(rows_ND: Array, labels_N: Labels, test_ND: Array) -> Labels:
    classes, codes = np.unique(labels_N, return_inverse=True)
    head = fit_prior_head(rows_ND, codes, len(classes), discriminates=False)
    return classes[head.logits(test_ND).argmax(axis=1)]


def _isotropic(rows_ND: Array, labels_N: Labels, test_ND: Array) -> Labels:
    """Ridge whose penalty nothing but the rows chooses, out of many."""
    classes, codes = np.unique(labels_N, return_inverse=True)
    problem = Problem(RowSpace.from_rows(rows_ND, np.ones(len(codes))), codes, len(classes))
    picked = problem.picked

    def fit(penalty: float) -> float:
        if not problem.has_others.all():
            return problem.evidence(Point(penalty))
        logits = problem.left_out_logits(Point(penalty), problem.left_rows(picked))
        return -fit_temperature(logits, codes[picked], np.ones(len(picked)))[1]

    weight, bias = problem.head(Point(max(ISOTROPIC_PENALTIES.tolist(), key=fit)))
    return classes[(test_ND @ weight + bias).argmax(axis=1)]


def _zero_shot(task: Task, test_ND: Array) -> Labels:
    """By the prototypes of every modality of the target's width, their logits added up."""
    logits_NC = np.zeros((len(test_ND), len(task.classes)))
    for name in aligned(task):
        rows, labels = task.others[name]
        prior = ClassPrior.from_rows(name, rows, np.searchsorted(task.classes, labels), len(task.classes))
        weight, bias = zero_shot_head(prior)
        logits_NC += test_ND @ weight + bias
    return task.classes[logits_NC.argmax(axis=1)]


def _nameless(task: Task, rows_ND: Array, labels_N: Labels, test_ND: Array) -> Labels:
    """By ridge on how near a row is to each class of the bridge: what it is worth without a name."""
    assert task.bridge is not None
    names, codes = np.unique(task.bridge[1], return_inverse=True)
    prototypes_BD = ClassPrior.from_rows("bridge", task.bridge[0], codes, len(names)).prototypes
    near_NB, near_test_NB = ((rows @ (prototypes_BD - prototypes_BD.mean(axis=0)).T) for rows in (rows_ND, test_ND))
    predicted: Labels = UnpairedClassifier(normalize=False).fit(near_NB, labels_N).predict(near_test_NB)
    return predicted


def aligned(task: Task) -> list[str]:
    """The modalities of the target's width."""
    return [name for name, (rows, _) in task.others.items() if rows.shape[1] == task.train[0].shape[1]]
