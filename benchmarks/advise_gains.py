"""The gains that training measures on the cases of `advise_cases`, over paired seeds, kept in a file of JSON lines.

Arms as in tune_spaces/controls.py: linear_probe (no projection), unimodal (λ = 0, random head), uml (λ = 1, random
head) and uml_init (λ = 1, class means of the auxiliary corpus in the head). Test accuracy is measured once, on the
weights that validated best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.advise_cases import Case
from uml_core.config import Experiment
from uml_core.data.training_data import build_training_data
from uml_core.evaluation.outcome import evaluated_run
from uml_core.evaluation.statistics import PairedDifference, paired_difference
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.run import TrainingRun

ARMS = {
    "unimodal": {"model.head_init": "random", "mixing.loss_weight": {"auxiliary": 0.0}},
    "uml": {"model.head_init": "random"},
    "uml_init": {"model.head_init": "zero_shot"},
}


@dataclass(frozen=True)
class MeasuredCase:
    """Test accuracy of each arm per seed, and the gains."""

    case: Case
    accuracy: dict[str, dict[int, float]]

    def gain(self, arm: str = "uml_init", baseline: str = "unimodal") -> PairedDifference:
        """Return the paired difference of an arm against a baseline, in [−1, 1]."""
        return paired_difference(self.accuracy[arm], self.accuracy[baseline])


def measure_gains(cases: Sequence[Case], file: Path, *, num_seeds: int) -> list[MeasuredCase]:
    """Train every case that the file lacks and return all of them."""
    known = read_gains(file)
    baselines: dict[tuple[str, ...], dict[str, dict[int, float]]] = {}
    measured = []
    for case in tqdm(cases, desc="train", unit="case"):
        if case.name not in known:
            width = str(case.tables["auxiliary"].embeddings.shape[1])
            key = (case.dataset, case.target, str(case.shots), width)
            if key not in baselines:  # an arm without auxiliary loss depends on the corpus through its width alone
                baselines[key] = _baselines(case, num_seeds)
            treated = {arm: _over_seeds(case, ARMS[arm], num_seeds) for arm in ("uml", "uml_init")}
            known[case.name] = {**baselines[key], **treated}
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"case": case.name, "accuracy": known[case.name]}) + "\n")
        measured.append(MeasuredCase(case, known[case.name]))
    return measured


def read_gains(file: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Return the accuracies in a file: case → arm → seed → accuracy."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {
        record["case"]: {
            arm: {int(seed): value for seed, value in seeds.items()} for arm, seeds in record["accuracy"].items()
        }
        for record in map(json.loads, lines)
    }


def _baselines(case: Case, num_seeds: int) -> dict[str, dict[int, float]]:
    alone = case.experiment.model_dump(mode="json")
    alone["corpora"].pop("auxiliary")
    probe = Experiment.model_validate({**alone, "model": {"head_init": "random"}})
    return {
        "linear_probe": {seed: _accuracy(probe, case.tables, seed) for seed in range(num_seeds)},
        "unimodal": _over_seeds(case, ARMS["unimodal"], num_seeds),
    }


def _over_seeds(case: Case, arm: dict[str, object], num_seeds: int) -> dict[int, float]:
    experiment = case.experiment.override(arm)
    return {seed: _accuracy(experiment, case.tables, seed) for seed in range(num_seeds)}


def _accuracy(experiment: Experiment, tables: dict[str, CorpusTable], seed: int) -> float:
    seeded = experiment.override({"seed": seed, "data.split_seed": seed})
    run = TrainingRun(seeded, build_training_data(seeded, tables))
    for _ in run.evaluations():
        pass
    return evaluated_run(run).accuracy("test")
