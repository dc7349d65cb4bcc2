"""K heads trained at once (`uml_core.training.packs`) against the same K one after another, on one device.

The heads are those of `benchmarks.train_throughput`: 384 and 768 wide in 100 classes, batch 32 + 32, float32; four
rates and two seeds, as a sweep has them. The products of one head's step are far too few for a GPU: calls are measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.bare_head import BATCH, CLASSES, WIDTHS, bare_steps_per_s
from benchmarks.figures import Figure
from benchmarks.gpu_device import Bench
from uml_core.config import Experiment, parse_experiment
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.packs import train_together
from uml_core.training.run import TrainingRun

RATES, SEEDS = (1e-4, 3e-4, 1e-3, 3e-3), (0, 1)
ROWS, STEPS = 20_000, 1000
SMALL_ROWS, SMALL_STEPS = 400, 10


def measure(bench: Bench) -> Iterator[Figure]:
    """Measure a pack, its heads one after another, and the bare loop."""
    rows, steps = (SMALL_ROWS, SMALL_STEPS) if bench.small else (ROWS, STEPS)
    tables, device = tables_of(rows), str(bench.device)
    trials = [experiment_of(steps, rate, seed) for rate in RATES for seed in SEEDS]
    data = build_training_data(trials[0], tables)
    train_together(_runs(trials, data, device, steps=5), lambda run, evaluation: None)  # warm-up
    _one_after_another(_runs(trials[:1], data, device, steps=5))
    together, alone = _runs(trials, data, device), _runs(trials, data, device)
    failures = train_together(together, lambda run, evaluation: None)
    assert not any(failures), failures
    _one_after_another(alone)
    together_s, alone_s = (sum(run.progress.train_s for run in runs) for runs in (together, alone))
    num_steps = steps * len(trials)
    bare = bare_steps_per_s(tables, trials[0], steps=steps, device=device)
    name = f"{len(trials)} heads at once: heads' steps/s"
    yield Figure(f"{name}, against our loop, one after another", num_steps / together_s, num_steps / alone_s)
    yield Figure(f"{name}, against the bare loop, one after another", num_steps / together_s, bare)
    few = max(5, steps // 10)
    pack, single = _runs(trials, data, device, steps=few), _runs(trials[:1], data, device, steps=few)
    pack_busy = bench.busy(lambda: train_together(pack, lambda run, evaluation: None))
    single_busy = bench.busy(lambda: _one_after_another(single))
    idle = pack_busy.idle_share(together_s * few / steps), single_busy.idle_share(alone_s * few / num_steps)
    yield Figure(f"{len(trials)} heads at once: device idle, share of the wall", idle[0], idle[1] or None, digits=3)


def experiment_of(steps: int, rate: float, seed: int) -> Experiment:
    """One head's experiment, in float32: what a pack's closed form is for."""
    corpora = {name: {"modality": "vector", "format": "embeddings", "path": name} for name in WIDTHS}
    train = {"max_steps": steps, "eval_every": steps, "batch_size": BATCH, "precision": "float32"}
    tree = {"name": "gpu", "store": "store", "target": "target", "corpora": corpora, "train": train}
    return parse_experiment(tree).override({"optim.lr": rate, "seed": seed})


def tables_of(rows: int) -> dict[str, CorpusTable]:
    """Random embeddings of every corpus, as a store would hold them."""
    rng, names = np.random.default_rng(0), tuple(f"{label:03d}" for label in range(CLASSES))
    made = {}
    for corpus, width in WIDTHS.items():
        is_val = (np.arange(rows) % 20 == 0) & (corpus == "target")
        codes = (np.arange(rows) // 2 + np.arange(rows)) % CLASSES  # every class in both splits
        embeddings = rng.standard_normal((rows, width), dtype=np.float32)
        made[corpus] = CorpusTable(embeddings, codes, names, is_val.astype(np.int64), ("train", "val"))
    return made


def _runs(trials: list[Experiment], data: TrainingData, device: str, steps: int | None = None) -> list[TrainingRun]:
    changes = {} if steps is None else {"train.max_steps": steps, "train.eval_every": steps}
    return [TrainingRun(trial.override(changes), data, device=device) for trial in trials]


def _one_after_another(runs: list[TrainingRun]) -> None:
    for run in runs:
        for _ in run.evaluations():
            pass
