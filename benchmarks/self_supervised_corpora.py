"""Real corpora of token sequences for `self_supervised_results`: two views of one kind of thing, never of the same row.

Every corpus is cut in two halves of different rows; the target is one view of the first half, the auxiliary corpus the
other view of the second half, without labels. Test rows are the target's view of rows that neither half holds.

* digits: scikit-learn's handwritten digits; left halves and right halves of the picture, 8 rows of 4 pixels.
* vowels: JapaneseVowels, nine speakers saying /ae/; cepstral coefficients 1 to 6 and 7 to 12, 7 to 29 frames.
* motions: BasicMotions, four activities; accelerometer and gyroscope of a watch, 100 moments of 3 axes, every 4th kept.
* emoji: OpenMoji's pictures as 49 patch tokens of EfficientNet-lite0, and their names as word tokens of MiniLM (the
  demo's corpora: two real modalities, and names of train pictures only).

vowels and motions are read from the wheel of aeon, which carries them: pip download --no-deps aeon==1.0.0
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from pipelines.embed import step as embed
from pipelines.stores import store_tables
from uml_core.config import load_experiment
from uml_core.corpora.examples.openmoji import main as write_openmoji
from uml_core.store.sequence_table import SequenceTable

Sequences = Sequence[npt.NDArray[np.floating]]
Tables = Mapping[str, SequenceTable]


@dataclass(frozen=True)
class Views:
    """Rows with their classes: the target's view and the auxiliary view of each, and where the test rows begin."""

    target: Sequences
    auxiliary: Sequences
    labels: npt.NDArray[np.str_]
    num_train: int | None = None  # rows that are not the corpus's own test rows; None: a third is drawn for test


def tables_of(views: Views, seed: int) -> Tables:
    """Return the target and the auxiliary corpus of one seed, from different rows."""
    rng = np.random.default_rng(seed)
    count = len(views.labels)
    if views.num_train is None:
        order = rng.permutation(count)
        train, test = order[count // 3 :], order[: count // 3]
    else:
        train, test = rng.permutation(views.num_train), np.arange(views.num_train, count)
    first, second = train[: len(train) // 2], train[len(train) // 2 :]
    target = np.concatenate([first, test])
    splits = ["train"] * len(first) + ["test"] * len(test)
    return {
        "target": table([views.target[row] for row in target], list(views.labels[target]), splits),
        "auxiliary": table([views.auxiliary[row] for row in second], None, ["train"] * len(second)),
    }


def table(sequences: Sequences, labels: list[str] | None, splits: list[str]) -> SequenceTable:
    """Return sequences as a table in memory."""
    lengths = np.array([len(sequence) for sequence in sequences])
    label_names = tuple(sorted(set(labels or ())))
    split_names = tuple(sorted(set(splits)))
    codes = [-1] * len(splits) if labels is None else [label_names.index(label) for label in labels]
    return SequenceTable(
        np.concatenate(sequences).astype(np.float32),
        np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        lengths,
        None,
        np.array(codes, dtype=np.int64),
        label_names,
        np.array([split_names.index(split) for split in splits], dtype=np.int64),
        split_names,
    )


def digits() -> Views:
    """Return the halves of handwritten digits."""
    found = load_digits()
    return Views(list(found.images[:, :, :4]), list(found.images[:, :, 4:]), found.target.astype(str))


def from_wheel(wheel: Path, name: str, *, channels: int, every: int = 1) -> Views:
    """Return a time-series archive of aeon's wheel, its first `channels` and the others as views."""
    parts = [_read_ts(wheel, f"aeon/datasets/data/{name}/{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    series = [values[::every] for part, _ in parts for values in part]
    labels = np.array([label for _, part in parts for label in part])
    target, auxiliary = [values[:, :channels] for values in series], [values[:, channels:] for values in series]
    return Views(target, auxiliary, labels, num_train=len(parts[0][1]))


def _read_ts(wheel: Path, member: str) -> tuple[list[npt.NDArray[np.float64]], list[str]]:
    """Read a .ts file: a series a line, channels apart by colons, values by commas, the class last."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(member).decode().splitlines()
    data = [line for line in lines if line and not line.startswith(("#", "@"))]
    series, labels = [], []
    for line in data:
        *channels, label = line.split(":")
        series.append(np.array([[float(value) for value in channel.split(",")] for channel in channels]).T)
        labels.append(label.strip())
    return series, labels


def emoji(directory: Path) -> Callable[[int], Tables]:
    """Embed the demo's pictures and names as tokens (once a directory), and return the tables of any seed."""
    write_openmoji(["--output", str(directory / "corpora")])
    overrides = [
        f"store={directory}/store",
        f"tracking.uri=sqlite:///{directory}/mlflow.db",
        f"corpora.pictures.path={directory}/corpora/pictures",
        f"corpora.names.path={directory}/corpora/names.jsonl",
    ]
    experiment = load_experiment(Path(__file__).parents[1] / "examples" / "self_supervised.yaml", overrides)
    embed.run(experiment)
    found = store_tables(experiment)
    assert isinstance(found["pictures"], SequenceTable)
    tables = {"target": found["pictures"], "auxiliary": found["names"]}
    return lambda seed: tables
