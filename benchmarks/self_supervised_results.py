"""Does an unpaired corpus help a self-supervised trunk? On real sequences, with the noise control, over paired seeds.

    python -m benchmarks.self_supervised_results --wheel aeon-1.0.0-py3-none-any.whl      # some CPU-minutes
    python -m benchmarks.self_supervised_results --only digits --seeds 10

The arms have the same model, steps and target batches: the target alone, the target and the auxiliary corpus, and noise
of the auxiliary corpus's mean and deviation. Each selects its learning rate and its step by a probe on validation, and
is measured by a linear probe on test (all train labels). Beside them, the same probe on the trunk as initialised, and
on the mean of the raw tokens. Settings are the same for all corpora and arms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.figures import machine
from benchmarks.self_supervised_corpora import Tables, digits, emoji, from_wheel, tables_of
from uml_core.config import Experiment, parse_experiment
from uml_core.data.sequence_data import build_sequence_data
from uml_core.evaluation.outcome import evaluated_run, measure_outcome
from uml_core.evaluation.probes import evaluate_raw_probe, evaluate_untrained
from uml_core.evaluation.registry import measure
from uml_core.evaluation.statistics import paired_difference
from uml_core.training.run import TrainingRun

CORPORA = ("digits", "vowels", "motions", "emoji")
ARMS = {
    "unimodal": {"mixing.loss_weight.auxiliary": 0.0},
    "uml": {},
    "noise": {"corpora.auxiliary.control": "noise"},
}
MODEL = {"width": 40, "layers": 3, "heads": 5, "feedforward": 256, "dropout": 0.1, "max_tokens": 64}
EVALUATIONS = 10
LEARNING_RATES = (1e-3, 1e-2)


def experiment(seed: int, steps: int) -> Experiment:
    """Return the experiment of one seed."""
    train = {"max_steps": steps, "eval_every": max(1, steps // EVALUATIONS), "patience": EVALUATIONS, "batch_size": 32}
    corpora = {name: {"modality": "sequence", "format": "tokens", "path": name} for name in ("target", "auxiliary")}
    tree = {
        "name": "results",
        "seed": seed,
        "store": "store",
        "objective": "self_supervised",
        "target": "target",
        "corpora": corpora,
        "sequence_model": MODEL,
        "train": train,
        "data": {"split_seed": seed},
    }
    return parse_experiment(tree)


def run_seed(tables: Tables, base: Experiment, rates: Sequence[float]) -> dict[str, float]:
    """Return the test accuracy of every arm, of the untrained trunk and of the raw tokens, for one seed."""
    accuracies = {}
    for arm, overrides in ARMS.items():
        runs = [finished(base.override({**overrides, "optim.lr": rate}), tables) for rate in rates]
        chosen = max(runs, key=validation)
        evaluated = evaluated_run(chosen)
        accuracies[arm] = measure_outcome(chosen, evaluated=evaluated).test_accuracy or 0.0
        if arm == "uml":
            probes = measure(evaluated, {"raw": evaluate_raw_probe, "untrained": evaluate_untrained}).metrics
            accuracies |= {name: probes[f"probe/{name}/test_accuracy"] for name in ("untrained", "raw")}
    return accuracies


def finished(settings: Experiment, tables: Tables) -> TrainingRun:
    """Train to the end."""
    run = TrainingRun(settings, build_sequence_data(settings, tables))
    for _ in run.evaluations():
        pass
    return run


def validation(run: TrainingRun) -> tuple[float, float]:
    """Return what runs are selected by: accuracy, and at equal accuracy a lower NLL."""
    assert run.best is not None
    return run.best.val_accuracy, -run.best.val_nll


def rows_of(corpus: str, results: list[dict[str, float]]) -> str:
    """Return a corpus's row of the Markdown table."""
    cells = []
    for arm in ("raw", "untrained", *ARMS):
        values = [100 * result[arm] for result in results]
        cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
    for against in ("unimodal", "noise"):
        ours, theirs = ({seed: result[arm] for seed, result in enumerate(results)} for arm in ("uml", against))
        found = paired_difference(ours, theirs)
        cells.append(f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})")
    return f"| {corpus} | {' | '.join(cells)} |"


def main() -> None:
    """Run the chosen corpora and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.self_supervised_results", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--wheel", type=Path, default=None, help="wheel of aeon, for vowels and motions")
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, nargs="+", default=list(LEARNING_RATES), help="searched in every arm")
    parser.add_argument("--directory", type=Path, default=None, help="keeps emoji's store; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        builders = _builders(arguments.wheel, arguments.directory or Path(temporary))
        chosen = [corpus for corpus in arguments.only if corpus in builders]
        print(f"\n{machine()}; {arguments.seeds} seeds, {arguments.steps} steps, lr {arguments.lr}\n")
        print("| corpus | raw tokens | untrained | unimodal | UML | noise | UML − unimodal | UML − noise |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        found = {}
        for corpus in chosen:
            started, build = time.perf_counter(), builders[corpus]()
            found[corpus] = [
                run_seed(build(seed), experiment(seed, arguments.steps), arguments.lr)
                for seed in range(arguments.seeds)
            ]
            print(rows_of(corpus, found[corpus]), f"<!-- {time.perf_counter() - started:.0f} s -->", flush=True)
        print(json.dumps(found))


def _builders(wheel: Path | None, directory: Path) -> dict[str, Callable[[], Callable[[int], Tables]]]:
    """Return what makes each corpus that is at hand; it is made when its turn comes."""

    def of(views: Callable[[], object]) -> Callable[[], Callable[[int], Tables]]:
        def build() -> Callable[[int], Tables]:
            made = views()
            return lambda seed: tables_of(made, seed)  # type: ignore[arg-type]

        return build

    builders = {"digits": of(digits), "emoji": lambda: emoji(directory)}
    if wheel is not None:
        builders["vowels"] = of(lambda: from_wheel(wheel, "JapaneseVowels", channels=6))
        builders["motions"] = of(lambda: from_wheel(wheel, "BasicMotions", channels=3, every=4))
    return builders


if __name__ == "__main__":
    main()
