"""Does self-supervised UML profit from an auxiliary corpus that moves as the target does? (synthetic sequences)

    python -m benchmarks.self_supervised_known_answer                # seeds 0 to 4, some CPU-minutes
    python -m benchmarks.self_supervised_known_answer --seeds 100 101

A seed draws the corpora, the model and its batches, the same in every arm: the target alone, with the auxiliary corpus,
with noise of its mean and deviation in its place, and with its tokens out of order (the form `shuffled`). Settings are
those of the written experiment; they were chosen on seeds from 100 on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from uml_core.evaluation.sequence_suite import evaluate_sequences

from benchmarks.figures import machine
from benchmarks.self_supervised_corpora import table
from uml_core.config import Experiment, load_experiment
from uml_core.corpora.known_answer_sequences import write_known_answer_sequences
from uml_core.corpora.ready_sequences import stream_ready_sequences
from uml_core.corpora.sequence_data import build_sequence_data
from uml_core.evaluation.statistics import paired_difference
from uml_core.results import measure_outcome
from uml_core.sequence_store import SequenceTable
from uml_core.training import TrainingRun

ARMS = {  # form, overrides
    "unimodal": ("shared", {"mixing.loss_weight.auxiliary": 0.0}),
    "uml": ("shared", {}),
    "noise": ("shared", {"corpora.auxiliary.control": "noise"}),
    "shuffled": ("shuffled", {}),
}
UNTRAINED = ("raw", "untrained")


def run_seed(seed: int, arms: Sequence[str]) -> dict[str, float]:
    """Return the test accuracy of every arm, of the untrained trunk and of the raw tokens, for one seed."""
    accuracies: dict[str, float] = {}
    for arm in arms:
        form, changes = ARMS[arm]
        with tempfile.TemporaryDirectory() as folder:
            written = write_known_answer_sequences(Path(folder), shared=form == "shared", seed=seed)
            experiment = load_experiment(written.experiment).override({"data.split_seed": seed, **changes})
            tables = {name: read(experiment, name) for name in experiment.corpora}
        run = TrainingRun(experiment, build_sequence_data(experiment, tables))
        for _ in run.evaluations():
            pass
        accuracies[arm] = measure_outcome(run).test_accuracy or 0.0
        if arm == "uml":
            probes = evaluate_sequences(experiment, run.model, run.data)
            accuracies |= {name: probes[f"probe/{name}/test_accuracy"] for name in UNTRAINED}
    return accuracies


def read(experiment: Experiment, corpus: str) -> SequenceTable:
    """Return a corpus of ready sequences as the table that the store would give."""
    chunks = list(stream_ready_sequences(corpus, experiment.corpora[corpus]))
    rows = [row for chunk in chunks for row in chunk.rows]
    labels = None if rows[0].label is None else [str(row.label) for row in rows]
    return table([tokens for chunk in chunks for tokens in chunk.tokens], labels, [row.split for row in rows])


def report(results: Mapping[int, Mapping[str, float]]) -> str:
    """Return accuracies in percent and UML's differences as Markdown."""
    lines = ["| arm | test, % | UML − arm |", "|---|--:|--:|"]
    ours = {seed: result["uml"] for seed, result in results.items()}
    for arm in (name for name in (*UNTRAINED, *ARMS) if name in next(iter(results.values()))):
        values = [100 * result[arm] for result in results.values()]
        difference = ""
        if arm != "uml" and len(values) > 1:
            found = paired_difference(ours, {seed: result[arm] for seed, result in results.items()})
            difference = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {arm} | {statistics.mean(values):.1f}{spread} | {difference} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.self_supervised_known_answer", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="uml is always among them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    arms = [arm for arm in ARMS if arm in {*options.arms, "uml"}]
    results: dict[int, dict[str, float]] = {}
    for seed in options.seeds:
        results[seed] = run_seed(seed, arms)
        print(seed, {name: round(100 * value, 1) for name, value in results[seed].items()}, flush=True)
    print(f"\n{machine()}; seeds {options.seeds}\n\n{report(results)}")


if __name__ == "__main__":
    main()
