"""Cases to calibrate `pipelines.advise` on: a target, one auxiliary corpus and a number of shots, with their tables.

Sources: experiment files whose stores exist (every ordered pair of their corpora, text borrowed from each other as
unrelated controls, OpenMoji's names by language), synthetic corpora with a known answer, and scikit-learn's data sets
with their features halved into two "modalities" over disjoint rows. The auxiliary side also comes with shuffled labels
and as noise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.preprocessing import scale

from pipelines.stores import store_tables
from uml_core.config import Experiment, parse_experiment
from uml_core.corpora.examples.known_answer import LinearGaussian, write_known_answer
from uml_core.corpora.examples.openmoji_catalog import emoji_names, read_catalog
from uml_core.corpora.readers import list_rows
from uml_core.corpora.ready.embeddings import ReadyEmbeddings, read_ready_embeddings
from uml_core.store.corpus_table import CorpusTable

SHOTS = (1, 2, 4, 8)
FEW_SHOTS = (1, 4)  # for the cases that only vary another one
SUB_LANGUAGES = ("en", "de", "fr", "tr", "ru", "fa", "ja", "zh")  # from the encoder's own language to far from it
TARGET_LANGUAGES = ("de", "fr", "tr", "ru")  # names in these are also targets, with English ones beside them
CONTROLS = ("shuffled_labels", "noise")


@dataclass(frozen=True)
class Case:
    """One question: does `corpus` help `target` at this number of shots?"""

    dataset: str  # cases of one dataset are left out together
    target: str
    corpus: str
    kind: str  # real, language, shuffled_labels, noise, unrelated
    shots: int
    tables: dict[str, CorpusTable]  # target, auxiliary

    @property
    def name(self) -> str:
        """A name that is the same in every run."""
        return f"{self.dataset}/{self.target}/{self.corpus}/{self.kind}/{self.shots}"

    @property
    def experiment(self) -> Experiment:
        """The experiment that asks the question: short trainings, as in examples/demo.yaml."""
        control = "none" if self.kind in ("real", "language") else self.kind
        ready = {"modality": "vector", "format": "embeddings", "path": "in-memory"}
        return parse_experiment(
            {
                "name": "advise-calibration",
                "store": "in-memory",
                "target": "target",
                "corpora": {"target": ready, "auxiliary": {**ready, "control": control}},
                "data": {"shots": self.shots, "test_fraction": 0.3},  # where the target has no test split
                "train": {"max_steps": 300, "eval_every": 50},
            }
        )


def all_cases(experiments: Sequence[Experiment]) -> list[Case]:
    """Return the cases of some embedded experiments, and the built-in ones."""
    tables = {experiment.name: store_tables(experiment) for experiment in experiments}
    cases = [*synthetic_cases(), *scikit_learn_cases()]
    for experiment in experiments:
        own = tables[experiment.name]
        cases += _pairs(experiment, own)
        for other in experiments:
            if other.name != experiment.name:
                cases += _borrowed(experiment, own, other, tables[other.name])
        cases += _views(experiment, own)
        if "names" in own and "pictures" in own:
            cases += openmoji_language_cases(experiment, own)
    return cases


def _with_controls(case: Case, shots: Sequence[int] = SHOTS) -> Iterator[Case]:
    for kind in (case.kind, *CONTROLS):
        for count in shots:
            yield replace(case, kind=kind, shots=count)


def _pairs(experiment: Experiment, tables: dict[str, CorpusTable]) -> Iterator[Case]:
    """Yield every ordered pair of an experiment's corpora; only its own target with all shots and controls."""
    related = [name for name in experiment.corpora if experiment.corpora[name].control == "none"]
    for target in related:
        for corpus in experiment.corpora:
            if corpus == target:
                continue
            kind = "unrelated" if corpus not in related else "real"
            pair = {"target": tables[target], "auxiliary": tables[corpus]}
            case = Case(experiment.name, target, corpus, kind, 1, pair)
            if target != experiment.target:
                if kind == "real":
                    yield from (replace(case, shots=shots) for shots in FEW_SHOTS)
            elif corpus == experiment.auxiliaries[0]:
                yield from _with_controls(case)
            else:
                yield from (replace(case, shots=shots) for shots in SHOTS)


def _borrowed(
    experiment: Experiment, tables: dict[str, CorpusTable], other: Experiment, other_tables: dict[str, CorpusTable]
) -> Iterator[Case]:
    """Yield the target with the other experiment's first auxiliary corpus as unrelated text."""
    corpus = other.auxiliaries[0]
    pair = {"target": tables[experiment.target], "auxiliary": other_tables[corpus]}
    for shots in FEW_SHOTS:
        yield Case(experiment.name, experiment.target, f"{other.name}-{corpus}", "unrelated", shots, pair)


def _views(experiment: Experiment, tables: dict[str, CorpusTable]) -> Iterator[Case]:
    """Yield the target's embeddings dealt out as two corpora: related by construction, on real data."""
    table = tables[experiment.target]
    views = halved(table, table.embeddings.shape[1] // 4)
    yield from _with_controls(Case(experiment.name, "quarter-of-target", "other-features", "real", 1, views), FEW_SHOTS)


def openmoji_language_cases(experiment: Experiment, tables: dict[str, CorpusTable]) -> Iterator[Case]:
    """Yield the pictures with the names in one language alone, and the names of one language with English ones."""
    texts = [str(row.text).casefold() for row in list_rows("names", experiment.corpora["names"])]
    assert len(texts) == len(tables["names"].embeddings), "names.jsonl and the store differ"
    # No subgroup is so large as to be a class, so no picture is drawn to find families.
    codes = [code for group in read_catalog(sys.maxsize).others.values() for code in group]
    in_language = {}
    for language in SUB_LANGUAGES:
        names = {name.casefold() for code in codes for name in emoji_names(code, [language])}
        in_language[language] = np.array([text in names for text in texts])
    for language, rows in in_language.items():
        names_table = select_rows(tables["names"], rows)
        pair = {"target": tables["pictures"], "auxiliary": names_table}
        for shots in FEW_SHOTS:
            yield Case(experiment.name, "pictures", f"names-{language}", "language", shots, pair)
            if language in TARGET_LANGUAGES:  # a word of both languages stays on the target's side
                other = select_rows(tables["names"], in_language["en"] & ~rows)
                named = {"target": names_table, "auxiliary": other}
                yield Case(experiment.name, f"names-{language}", "names-en", "language", shots, named)


def select_rows(table: CorpusTable, keep_N: np.ndarray) -> CorpusTable:
    """Return some rows of a table."""
    return replace(
        table,
        embeddings=table.embeddings[keep_N],
        label_codes=table.label_codes[keep_N],
        split_codes=table.split_codes[keep_N],
    )


def synthetic_cases() -> Iterator[Case]:
    """Yield known-answer corpora: shared and unrelated latents, several noise levels and numbers of classes."""
    for num_classes, noise in ((100, 0.5), (100, 4.0), (20, 0.5), (20, 2.0)):
        for shared in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                settings = LinearGaussian(num_classes=num_classes, auxiliary_noise=noise, target_noise=2.0)
                written = write_known_answer(Path(folder), settings, shared=shared)
                corpora = yaml.safe_load(written.experiment.read_text(encoding="utf-8"))["corpora"]
                experiment = parse_experiment({"name": "x", "store": folder, "target": "target", "corpora": corpora})
                tables = {
                    name: table_of(read_ready_embeddings(name, experiment.corpora[name])) for name in experiment.corpora
                }
            form = "shared" if shared else "unrelated-latents"
            for shots in FEW_SHOTS:
                yield Case("synthetic", f"{num_classes}-classes", f"{form}-noise-{noise}", "real", shots, tables)


def table_of(ready: ReadyEmbeddings) -> CorpusTable:
    """Return ready embeddings as the table that the store would give."""
    labels, splits = ([getattr(row, part) for row in ready.rows] for part in ("label", "split"))
    label_names, label_codes = np.unique(labels, return_inverse=True)
    split_names, split_codes = np.unique(splits, return_inverse=True)
    return CorpusTable(
        ready.embeddings, label_codes, tuple(map(str, label_names)), split_codes, tuple(map(str, split_names))
    )


def scikit_learn_cases() -> Iterator[Case]:
    """Yield scikit-learn's data sets: some features of one half of the rows, and the other features of the rest.

    Widths differ, so that the model has a projection; of digits there is also a pair of equal widths, which has none.
    """
    loaders = {"digits": load_digits, "wine": load_wine, "breast-cancer": load_breast_cancer}
    for name, load in loaders.items():
        bunch = load()
        values, labels = scale(bunch.data).astype(np.float32), bunch.target.astype(np.int64)
        table = CorpusTable(
            values, labels, tuple(map(str, bunch.target_names)), np.zeros(len(labels), dtype=np.int64), ("train",)
        )
        cut = 3 * values.shape[1] // 8
        case = Case(name, "some-features", "other-features", "real", 1, halved(table, cut))
        yield from _with_controls(case, FEW_SHOTS)
        if name == "digits":
            tables = halved(table, values.shape[1] // 2)
            for shots in FEW_SHOTS:
                yield Case(name, "half-the-features", "other-half", "real", shots, tables)


def halved(table: CorpusTable, cut: int) -> dict[str, CorpusTable]:
    """Return two corpora that share no row: `cut` features of half the train rows (and the rest), and the others.

    The columns are dealt out by lot: two views of the same classes.
    """
    rng = np.random.default_rng(0)
    columns = rng.permutation(table.embeddings.shape[1])
    train = table.split_codes == table.split_names.index("train")
    half = rng.random(len(train)) < 0.5
    sides = {"target": (~train | half, columns[:cut]), "auxiliary": (train & ~half, columns[cut:])}
    return {
        name: select_rows(replace(table, embeddings=np.ascontiguousarray(table.embeddings[:, picked])), rows)
        for name, (rows, picked) in sides.items()
    }
