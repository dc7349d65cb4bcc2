"""Does `pipelines.advise` predict the gain? Over corpora that help, do nothing, and harm, and the controls of each.

    python -m benchmarks.advise_calibration [FOLDER ...] --output runs/advise-calibration

A folder holds ready embeddings, images.npy with images.jsonl (label and split a row) and the same of other modalities,
and perhaps task.json with the target's name. Predicted: from all of the target's labelled rows but test, and from a few
(those of a few-shot run: the shots, and at most 4 rows a class). Measured: test accuracy of the head whose prior the
corpus writes, less the best of ridge, discriminant, logistic and zero-shot on test, over ten other draws. A "gain" is
an interval above 0, "harm" one below 0 against the discriminant. Every case goes to DIR/cases.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets
from tqdm import tqdm

from benchmarks.figures import machine
from uml_core.analysis.relevance import Draw, Relevance, labelled_pool, redrawn, relevance
from uml_core.config import parse_experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.subsets import take_shots
from uml_core.data.target_rows import MAX_VAL_SHOTS
from uml_core.data.training_data import build_training_data
from uml_core.models.closed_form.row_space import Array
from uml_core.store.corpus_table import CorpusTable

SHOTS, DRAWS, CLASSES, LATENTS, WIDTH = (1, 2, 4, 8), 10, 24, 8, 64
CONTROLS = {"real": "none", "shuffled": "shuffled_labels", "noise": "noise"}
UNDECIDED = "not enough evidence"
FAMILIES = [  # and the noise of the corpus's rows
    *itertools.product(("aligned", "aligned, with errors", "gram only"), (0.5, 3.0)),
    *itertools.product(("nothing", "nothing, equal width", "groups only", "neighbours swapped"), (0.5,)),
]


@dataclass(frozen=True)
class Case:
    """A corpus at some shots: predicted from all labelled rows, from few, and measured."""

    dataset: str
    kind: str
    shots: int
    predicted: Relevance
    from_few: Relevance
    measured: Relevance  # with the test rows in place of those left out


def table(embeddings: Array, labels: Sequence[object], splits: Sequence[str]) -> CorpusTable:
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    split_names, split_codes = np.unique(splits, return_inverse=True)
    return CorpusTable(embeddings.astype(np.float32), codes, tuple(names), split_codes, tuple(split_names))


def generated(family: str, noise: float, seed: int) -> dict[str, CorpusTable]:
    """A target of 24 classes in groups of 4, and a corpus whose prototypes the family places."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(rng.normal(size=(CLASSES // 4, LATENTS)), 4, axis=0)
    latents = (groups + rng.normal(size=groups.shape)) / np.sqrt(2)
    to_target, to_other = rng.normal(size=(2, LATENTS, WIDTH)) / np.sqrt(LATENTS)
    means, unrelated = latents @ to_target, rng.normal(size=latents.shape) @ to_other
    prototypes = {
        "aligned": means,
        "aligned, with errors": means + rng.normal(size=means.shape),
        "gram only": (latents @ to_other)[:, : WIDTH // 2],
        "nothing": unrelated[:, : WIDTH // 2],
        "nothing, equal width": unrelated,
        "groups only": (groups @ to_other)[:, : WIDTH // 2],
        "neighbours swapped": means.reshape(-1, 4, WIDTH)[:, [1, 2, 3, 0]].reshape(means.shape),
    }[family]
    target = rng.normal(np.repeat(means, 43, axis=0), 2.0)
    auxiliary, codes = rng.normal(np.repeat(prototypes + 0.5, 10, axis=0), noise), np.arange(CLASSES)
    return {
        "target": table(target, np.repeat(codes, 43), (["train"] * 18 + ["test"] * 25) * CLASSES),
        "auxiliary": table(auxiliary, np.repeat(codes, 10), ["train"] * len(auxiliary)),
    }


def built_in() -> Iterator[tuple[str, dict[str, CorpusTable]]]:
    """The families, and two views of scikit-learn's data: one of half of the rows, the other of the rest."""
    yield from ((family, generated(family, noise, seed)) for seed, (family, noise) in enumerate(FAMILIES))
    digits, labels = datasets.load_digits(return_X_y=True)
    small = digits.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(digits), -1)
    blurred = (digits + np.roll(digits, 1, axis=1) + np.roll(digits, 8, axis=1)) / 3
    pairs = {"halves": (digits[:, :32], digits[:, 32:]), "small": (digits, small), "blurred": (digits, blurred)}
    found = [(f"digits, {name}", *pair, labels) for name, pair in pairs.items()]
    for name, load in (("wine", datasets.load_wine), ("breast cancer", datasets.load_breast_cancer)):
        rows, labels = load(return_X_y=True)
        found.append((name, *np.array_split((rows - rows.mean(axis=0)) / rows.std(axis=0), 2, axis=1), labels))
    for name, own, other, labels in found:
        ours, theirs = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
        splits = np.where(np.arange(len(ours)) < 0.55 * len(ours), "train", "test")
        auxiliary = table(other[theirs], labels[theirs], ["train"] * len(theirs))
        yield name, {"target": table(own[ours], labels[ours], splits), "auxiliary": auxiliary}


def read_folder(folder: Path) -> tuple[str, dict[str, CorpusTable]]:
    """The target's name and the tables of a folder."""
    tables = {}
    for file in sorted(folder.glob("*.npy")):
        rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        tables[file.stem] = table(np.load(file), [row["label"] for row in rows], [row["split"] for row in rows])
    settings = folder / "task.json"
    return json.loads(settings.read_text())["target"] if settings.exists() else "images", tables


def cases_of(name: str, target: str, tables: dict[str, CorpusTable]) -> Iterator[Case]:
    """Every corpus but the target under every control, at all shots."""
    ready = {"modality": "vector", "format": "embeddings", "path": "x"}
    kinds = {f"{own}-{kind}": (own, kind) for own in tables if own != target for kind in CONTROLS}
    corpora = {target: ready} | {each: {**ready, "control": CONTROLS[kind]} for each, (_, kind) in kinds.items()}
    experiment = parse_experiment({"name": "x", "store": "x", "target": target, "corpora": corpora})
    under = {target: tables[target]} | {each: tables[own] for each, (own, _) in kinds.items()}
    data = [build_training_data(experiment.override({"data.split_seed": seed}), under) for seed in range(DRAWS)]
    pool = labelled_pool(data[0])
    for shots in SHOTS:
        picked = take_shots(pool.labels, np.arange(len(pool)), shots=shots + min(MAX_VAL_SHOTS, shots), seed=50)
        few = LabelledRows(pool.embeddings, pool.rows[picked], pool.labels[picked])
        seen, from_few, others = (
            [redrawn(each, rows, shots=shots, seed=first + seed) for seed, each in enumerate(data)]
            for rows, first in ((pool, 0), (few, 0), (pool, 100))
        )
        tested = [replace(each, val=each.test or each.val) for each in others]
        judged = [list(map(Draw.from_data, draws)) for draws in (seen, from_few, tested)]
        for corpus, (own, kind) in kinds.items():
            yield Case(f"{name}: {own}", kind, shots, *(relevance(draws, corpus) for draws in judged))


def frame_of(cases: Sequence[Case], rows: str) -> pd.DataFrame:
    """A line a case: what was said from some rows, and what was measured. Gains are in points."""
    lines = []
    for case in cases:
        found, measured = getattr(case, rows), case.measured
        truth = "gain" if measured.gain.low > 0 else "harm" if measured.worth.high < 0 else "neither"
        line = {"data set": re.split("[-:,]", case.dataset)[0], "kind": case.kind, "word": found.verdict[0]}
        line |= {"measured": truth, "points": 100 * measured.gain.mean, "wide": measured.same_width}
        inside = found.gain.low <= measured.gain.mean <= found.gain.high
        lines.append(line | {"predicted": 100 * found.gain.mean, "inside": inside})
    return pd.DataFrame(lines)


def words(frame: pd.DataFrame) -> str:
    """What was measured under each word, and how often controls were said to help."""
    counts = pd.crosstab(frame["word"], frame["measured"]).join(frame.groupby("word")["points"].mean().round(1))
    controls = frame["word"][frame["kind"] != "real"] == "helps"
    shares = f"helps on {controls.sum()} of {len(controls)} controls; {frame['inside'].mean():.0%} inside the interval"
    return f"{counts.to_string()}\n{shares}\n"


def left_out(frame: pd.DataFrame) -> str:
    """Mean errors in points by data set: as predicted, and of predictors that are fitted to the other data sets."""
    said, fitted = frame["predicted"], frame.assign(rescaled=0.0, by_width=0.0, always_0=0.0)
    for name, out in frame.groupby("data set"):
        rest = frame[frame["data set"] != name]
        slope = (rest["predicted"] @ rest["points"]) / (rest["predicted"] @ rest["predicted"])
        fitted.loc[out.index, "rescaled"] = slope * said[out.index]
        fitted.loc[out.index, "by_width"] = out["wide"].map(rest.groupby("wide")["points"].mean())
    errors = fitted[["predicted", "rescaled", "by_width", "always_0"]].sub(frame["points"], axis=0).abs()
    helps, gained = frame["word"] == "helps", frame["measured"] == "gain"
    each = errors.assign(cases=1, gains=gained, helps=helps, right=helps & gained).groupby(frame["data set"])
    table = each[list(errors)].mean().join(each[["cases", "gains", "helps", "right"]].sum())
    return f"{table.round(1).to_string()}\nall: {errors.mean().round(2).to_dict()}"


def settled(cases: Sequence[Case]) -> str:
    """How often the rows that were asked for, once there, gave another word than "not enough evidence"."""
    asked = [case for case in cases if case.from_few.verdict[0] == UNDECIDED and case.from_few.settled_at]
    there = [c for c in asked if (c.from_few.settled_at or 0) * c.predicted.num_classes <= c.predicted.left_out_rows]
    return f"{sum(c.predicted.verdict[0] != UNDECIDED for c in there)} of {len(there)} settled by the rows asked for\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.advise_calibration")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path("runs/advise-calibration"), metavar="DIR")
    arguments = parser.parse_args()
    tasks = [(name, "target", tables) for name, tables in built_in()]
    tasks += [(folder.name, *read_folder(folder)) for folder in arguments.folders]
    cases = [case for task in tqdm(tasks, unit="data set") for case in cases_of(*task)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cases.jsonl").write_text("\n".join(json.dumps(asdict(each)) for each in cases), "utf-8")
    frame, few = frame_of(cases, "predicted"), frame_of(cases, "from_few")
    print(machine(), words(frame), words(few), settled(cases), left_out(frame), sep="\n")
    print(frame[frame["kind"] == "real"].groupby("wide")["points"].mean(), (frame["measured"] != "gain").mean())


if __name__ == "__main__":
    main()
