"""Delete what a store no longer needs: embeddings by other encoders or settings, and the folders of finished runs.

In: an experiment and its store. Out: what may go, with its size; with --delete it is gone. MLflow keeps what runs came
to, so no figure, model or report is lost.

    python -m pipelines.gc examples/demo.yaml
    python -m pipelines.gc examples/demo.yaml --delete --unfinished

What another process writes is never touched. An unfinished run, which the same line would go on with, and unfinished
embeddings, which `embed` would complete, go with --unfinished alone. Corpora of other experiments in the same store are
not looked at, but finished runs of theirs may go as this one's do; where several experiments share a corpus under
different encoders, look at the list before --delete.
"""

from __future__ import annotations

from pipelines.command_line import Summary
from pipelines.inventory import StoredFolder, delete, inventory
from pipelines.stores import corpus_fingerprints
from uml_core.config import Experiment

MIB = 2**20


def run(experiment: Experiment, *, delete_them: bool = False, unfinished: bool = False) -> Summary:
    """List what the store does not need for this experiment, and delete it where that is asked for."""
    current = _current(experiment)
    found = inventory(experiment.store, experiment.corpora)
    garbage = [
        folder
        for folder in found
        if folder.holder is None
        and (folder.is_finished or unfinished)
        and (folder.kind == "run" or folder.name not in current[folder.owner])
    ]
    lines, gone = [], 0
    for folder in garbage:
        goes = not delete_them or delete(experiment.store, folder)
        fate = ("deleted" if delete_them else "may go") if goes else "kept: another process has begun to write it"
        gone += folder.num_bytes * goes
        lines.append(f"{folder.num_bytes / MIB:>10.1f} MiB  {_named(folder):<50}  {folder.state}, {fate}")
    total = sum(folder.num_bytes for folder in found)
    done = "deleted" if delete_them else "may go (--delete deletes them)"
    lines.append(f"{gone / MIB:>10.1f} MiB of {total / MIB:.1f} MiB {done}")
    left = [folder for folder in found if folder not in garbage and folder.holder is None and not folder.is_finished]
    if left:
        lines.append(f"{len(left)} unfinished folders are kept; the same lines go on with them (--unfinished)")
    results = {"folders": [folder.path for folder in garbage], "bytes": gone, "deleted": delete_them}
    return Summary("\n".join(lines), results)


def _current(experiment: Experiment) -> dict[str, set[str]]:
    """The fingerprints of each corpus that are in use: by precision auto that of a GPU, too, which another host has."""
    given = experiment.embed.precision
    used = [
        corpus_fingerprints(experiment.override({"embed.precision": precision}))
        for precision in (("float32", "bfloat16") if given == "auto" else (given,))
    ]
    return {corpus: {each[corpus] for each in used} for corpus in experiment.corpora}


def _named(folder: StoredFolder) -> str:
    return f"{folder.owner}/{folder.name}" if folder.kind == "embeddings" else f"run {folder.owner}/{folder.name}"
