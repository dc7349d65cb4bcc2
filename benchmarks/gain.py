"""Does the prior head beat the best that needs no unpaired data? Tasks × shots × seeds × arms, one Markdown table.

    python -m benchmarks.gain                        # the made tasks, below runs/gain
    python -m benchmarks.gain FOLDER [FOLDER ...]    # your own ready embeddings
    python -m benchmarks.gain --work DIR --jobs 4

A folder holds images.npy (N, D) with images.jsonl (a line a row: label, split) and the same for text and any further
modality. `task.json` may name another target than images, {"target": "sounds"}. Of the target, train rows are drawn
from and test rows judge; of other modalities train rows alone are read. Every arm is tuned on the rows drawn, so rows
of split val are left alone. WORK/results.jsonl has a line an arm; run again, what it has is not measured again, unless
task, head or protocol have changed.

Arms: `ridge`, `discriminant`, `logistic`, and where widths agree `zero_shot` in both geometries need no unpaired
training: the best of them on the test rows, chosen after the fact for each task and number of shots, is what `prior` is
compared with.
Controls: `shuffled` hands each class another's rows, `noise` replaces them by Gaussian noise of their mean and spread,
`isotropic` is ridge with more freedom than the prior has (31 penalties, chosen by left-out rows or the evidence alone).
`bridge` is `prior` with a bridge (docs/method.md, Bridges), where the folder has bridge.npy, rows of other classes in
the target's space, and bridge-NAME.npy, what modality NAME says of those; `bridge_other_names` leaves out classes that
are named as the target's, `bridge_shuffled` permutes the bridge's names, and `bridge_nameless` is ridge on how near a
row is to each class of the bridge.
`pile` is `prior` with unlabelled.npy (U, D) where the folder has it, more rows of the target of which none is a test
row (those that are drawn are left out), and `pile_alone` is the same without text.
At 0 shots a quarter of the classes has no row and the others have 8; there `shuffled` swaps only names without rows,
and the figure is the harmonic mean of the accuracies on classes with and without rows.

Shape legend: R resamples, T tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.utils.parallel import Parallel, delayed
from tqdm import tqdm

from benchmarks.figures import machine
from benchmarks.gain_arms import BRIDGES, PILES, SPECIFICATIONS, Job, Record, aligned, key_of, measure, read_task
from uml_core.errors import InputError
from uml_core.evaluation.statistics import paired_difference

ALL_ROWS = 1_000_000
SEEDS = {0: 10, 1: 20, 2: 20, 4: 10, 8: 10, 16: 10, ALL_ROWS: 1}  # by shots
FEW_SEEDS = {1: 5, 4: 5}  # of every specification but the product's
ALTERNATIVES = ["ridge", "discriminant", "logistic", "zero_shot", "zero_shot_centred"]
CONTROLS = ["shuffled", "noise", "isotropic"]
RESAMPLES = 4000

Key = tuple[object, ...]


def jobs_of(folders: Sequence[Path]) -> list[Job]:
    """Everything that is to be measured.

    Raises:
        InputError: a folder cannot be used, or two have one name.
    """
    repeated = [name for name, count in Counter(folder.resolve().name for folder in folders).items() if count > 1]
    if repeated:
        raise InputError(f"several folders are named {repeated[0]}; each needs a name of its own")
    jobs = []
    for folder in folders:
        task = read_task(folder)
        zero_shot = ["zero_shot", "zero_shot_centred"] if aligned(task) else []
        extras = [*([] if task.bridge is None else BRIDGES), *([] if task.pile is None else PILES)]
        for specification in SPECIFICATIONS:
            is_product = specification == "auto"
            for shots, seeds in (SEEDS if is_product else FEW_SEEDS).items():
                own = ["shuffled", "noise", *extras] if is_product else []
                arms = ["ridge", "discriminant", "prior", *zero_shot, *own]
                if shots:  # these know nothing of classes without rows
                    arms += ["logistic", *(["isotropic"] if is_product else [])]
                else:
                    arms = [arm for arm in arms if arm not in ("bridge_nameless", *PILES)]
                jobs += [Job(folder, specification, shots, seed, tuple(arms)) for seed in range(seeds)]
    return jobs


def run(jobs: Sequence[Job], results: Path, num_processes: int) -> list[Record]:
    """The records of all jobs: those in the file, and those measured now and added to it."""
    known = {_key(record): record for record in _read(results)}
    wanted = {_key(key_of(job, arm)) for job in jobs for arm in job.arms}
    missing = []
    for job in jobs:
        arms = tuple(arm for arm in job.arms if _key(key_of(job, arm)) not in known)
        if arms:
            missing.append(replace(job, arms=arms))
    # By joblib, whose processes keep to one thread each; results come as they are ready.
    measured = Parallel(num_processes, return_as="generator_unordered")(delayed(measure)(job) for job in missing)
    with results.open("a", encoding="utf-8") as file:
        for records in tqdm(measured, total=len(missing), desc="gain", unit="draws", disable=None):
            known |= {_key(record): record for record in records}
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
    return [record for key, record in known.items() if key in wanted]


def _read(results: Path) -> Iterable[Record]:
    """The records of earlier runs; a line that was cut off is left out."""
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True) if results.exists() else []
    if lines and not lines[-1].endswith("\n"):
        with results.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _key(record: Mapping[str, object]) -> Key:
    fields = ("task", "content", "specification", "shots", "seed", "arm", "code", "protocol")
    return tuple(record[field] for field in fields)


def compared(records: Sequence[Record], specification: str) -> pd.DataFrame:
    """A row a draw: accuracies of all arms, the best alternative's as `best`, and which that is; in points."""
    rows = [record for record in records if record["specification"] == specification]
    frame = pd.DataFrame(rows).pivot(index=["use", "task", "shots", "seed"], columns="arm", values="accuracy") * 100
    alternatives = [arm for arm in ALTERNATIVES if arm in frame]
    means = frame[alternatives].groupby(level=["task", "shots"]).mean()
    names = means.idxmax(axis=1)
    frame["best_name"] = [names[task, shots] for _, task, shots, _ in frame.index]
    frame["best"] = [draw[draw["best_name"]] for _, draw in frame.iterrows()]
    return frame


def hierarchical_interval(by_task: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """The 95 % interval of the mean over tasks: tasks are drawn anew with replacement, then the seeds in each."""
    rng, count = np.random.default_rng(0), len(by_task)
    means_TRT = np.stack(
        [each[rng.integers(len(each), size=(RESAMPLES, count, len(each)))].mean(axis=2) for each in by_task]
    )
    drawn_RT = rng.integers(count, size=(RESAMPLES, count))
    means_R = means_TRT[drawn_RT, np.arange(RESAMPLES)[:, None], np.arange(count)].mean(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return float(low), float(high)


def table(records: Sequence[Record]) -> str:
    """The Markdown table: tasks, then what holds over tasks."""
    frame = compared(records, "auto")
    lines = [f"| {' | '.join(['accuracy, %; prior − best alternative', *map(_shots, SEEDS)])} |"]
    lines.append("|---" * (len(SEEDS) + 1) + "|")
    for use, task in frame.index.droplevel(["shots", "seed"]).unique():
        draws = frame.loc[use, task]
        lines.append(_row(f"{task} ({use})", [_cell(draws.loc[shots], shots) for shots in SEEDS]))
    counted = {shots: frame.xs(shots, level="shots") for shots in SEEDS}
    for label, which in {"all": frame.index.get_level_values("use").unique(), "confirming": ["confirming"]}.items():
        if label == "all" or "confirming" in frame.index.get_level_values("use"):
            chosen = [draws[draws.index.get_level_values("use").isin(which)] for draws in counted.values()]
            lines.append(_row(f"**mean of {label} tasks**", [_mean(draws, "best") for draws in chosen]))
    lines.append(_row("worst task", [_worst(draws) for draws in counted.values()]))
    for arm in [*ALTERNATIVES, *CONTROLS, *BRIDGES, *PILES]:
        if arm in frame:
            lines.append(_row(f"prior − {arm}", [_mean(draws, arm) for draws in counted.values()]))
    lines.append(_row("a corpus is believed, % of draws: own / shuffled / noise", _believed(records)))
    lines.append(_row("specifications with a gain in the mean (task by task)", _specifications(records)))
    return "\n".join(lines)


def _shots(shots: int) -> str:
    return {0: "0, harmonic", ALL_ROWS: "all rows"}.get(shots, str(shots))


def _row(label: str, cells: Iterable[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _signed(points: float) -> str:
    return f"{round(float(points), 1) + 0.0:+.1f}".replace("-", "−")


def _cell(draws: pd.DataFrame, shots: int) -> str:
    """The prior's accuracy, its gain with half the width of the 95 % t interval, and the best alternative's name.

    At 0 shots most alternatives know nothing of classes without rows, so the control stands beside it.
    """
    gain = paired_difference(draws["prior"].to_dict(), draws["best"].to_dict())
    width = (gain.high - gain.low) / 2 if len(draws) > 1 else 0.0
    half = f" ± {width:.1f}" if width >= 0.05 else ""  # draws are one where a class has no more rows than shots
    control = "" if shots else f"; shuffled {draws['shuffled'].mean():.1f}"
    return f"{draws['prior'].mean():.1f}; {_signed(gain.mean)}{half} {draws['best_name'].iloc[0]}{control}"


def _mean(draws: pd.DataFrame, arm: str) -> str:
    """The mean over tasks of the prior's gain over an arm, and its hierarchical interval."""
    gains = (draws["prior"] - draws[arm]).dropna()
    by_task = [each.to_numpy() for _, each in gains.groupby(level="task")]
    if not by_task:
        return "–"
    mean, (low, high) = float(np.mean([each.mean() for each in by_task])), hierarchical_interval(by_task)
    return f"{_signed(mean)} ({_signed(low)} to {_signed(high)})" if len(by_task) > 1 else _signed(mean)


def _worst(draws: pd.DataFrame) -> str:
    gains = (draws["prior"] - draws["best"]).groupby(level="task").mean()
    return f"{_signed(gains.min())} {gains.idxmin()}"


def _believed(records: Sequence[Record]) -> list[str]:
    """The share of draws in which any corpus takes part."""
    cells = []
    for shots in SEEDS:
        drawn = [record for record in records if (record["shots"], record["specification"]) == (shots, "auto")]
        believed = [[bool(r["believed"]) for r in drawn if r["arm"] == arm] for arm in ("prior", "shuffled", "noise")]
        cells.append(" / ".join(f"{100 * np.mean(each):.0f}" for each in believed))
    return cells


def _specifications(records: Sequence[Record]) -> list[str]:
    """Of centring × normalisation: how many have a mean over tasks above 0; and so of single tasks."""
    frames = [compared(records, each) for each in SPECIFICATIONS]
    cells = []
    for shots in SEEDS:
        gains = [
            (draws["prior"] - draws["best"]).groupby(level="task").mean()
            for draws in (frame.xs(shots, level="shots") for frame in frames if shots in FEW_SEEDS)
        ]
        by_task = np.concatenate([np.zeros(0), *gains])
        means = sum(each.mean() > 0 for each in gains)
        cells.append(f"{means} of {len(gains)} ({(by_task > 0).sum()} of {len(by_task)})" if gains else "–")
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gain", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="tasks; none: the made ones")
    parser.add_argument("--work", type=Path, default=Path("runs/gain"), help="made tasks and results.jsonl")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a CPU)")
    given = parser.parse_args(argv)
    try:
        jobs = jobs_of(given.folders or _made(given.work))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    records = run(jobs, given.work / "results.jsonl", given.jobs)
    print(f"{table(records)}\n\n{machine()}; {len(records)} measurements in {given.work / 'results.jsonl'}")
    return 0


def _made(work: Path) -> list[Path]:
    from benchmarks.gain_tasks import make_tasks  # loads encoders

    return make_tasks(work)


if __name__ == "__main__":
    sys.exit(main())
