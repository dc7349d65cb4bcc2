"""Peak memory of a training process, and of what it holds, with and without `train.sharding=full`.

    python -m benchmarks.sharding_memory

Two processes train timm's vit_base_patch16_224 (86 million random weights) over gloo on pictures of 64 × 64 pixels, so
that weights, gradients and moments outweigh activations: 1, then 2 workers whole (DDP), then 2 sharded. The peak is
that of the resident set, read from the kernel, less what was resident before the model was built; it includes the whole
weights that every process reads before it shards them. Prints a Markdown table for docs/measured.md.
"""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing

from benchmarks.figures import experiment_in, machine, write_noise
from uml_core.config import Experiment
from uml_core.corpora.readers import rows_of
from uml_core.data.training_data import build_training_data
from uml_core.feed.pictures import PictureData, picture_data
from uml_core.gradients.ranks import local
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.fine_tuning import target_encoder
from uml_core.training.run import TrainingRun

MODEL, SIDE, CLASSES, PER_CLASS, BATCH, STEPS = "vit_base_patch16_224", 64, 4, 8, 8, 4
WAYS = (("one worker", 1, "none"), ("two workers, whole", 2, "none"), ("two workers, sharded", 2, "full"))


def main() -> None:
    """Measure every way in fresh processes and print the table."""
    print(f"{machine()}, {MODEL} at {SIDE} pixels, batch {BATCH}\n")
    print("| | weights held, MB | moments held, MB | peak a process, MB | steps/s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for number, (name, workers, sharding) in enumerate(WAYS):
            experiment = experiment_of(Path(directory), workers, sharding)
            folder = Path(directory, str(number))
            folder.mkdir()
            (folder / "case.pkl").write_bytes(pickle.dumps((experiment, data_of(experiment))))
            torch.multiprocessing.spawn(measure, (workers, folder), nprocs=workers)
            found = [torch.load(folder / f"{rank}.pt") for rank in range(workers)]
            peaks = "/".join(f"{each['peak'] / 1e6:.0f}" for each in found)
            held = f"{found[0]['weights'] / 1e6:.0f} | {found[0]['moments'] / 1e6:.0f}"
            print(f"| {name} | {held} | {peaks} | {found[0]['steps_per_s']:.2f} |", flush=True)


def experiment_of(directory: Path, workers: int, sharding: str) -> Experiment:
    """An experiment on pictures of noise, which are written where they are not there yet."""
    files = [
        directory / "pictures" / split / f"class-{label}" / f"{index}.png"
        for label in range(CLASSES)
        for split in ("train", "val")
        for index in range(PER_CLASS)
    ]
    write_noise(files, blocks=(SIDE, SIDE), size=(SIDE, SIDE))
    return experiment_in(
        directory,
        {
            "target": "pictures",
            "corpora": {"pictures": {"modality": "image", "format": "folder", "path": str(directory / "pictures")}},
            "encoders": {"image": {"source": "timm", "name": MODEL, "image_size": SIDE, "weights": "random"}},
            "model": {"backbone": "finetune", "head_init": "random"},
            "train": {
                **{"max_steps": STEPS, "eval_every": STEPS, "batch_size": BATCH},
                **{"workers": workers, "sharding": sharding},
            },
        },
    )


def data_of(experiment: Experiment) -> PictureData:
    """What is trained on; the table's embeddings are zeros, which a trained encoder does not read."""
    rows, encoder = list(rows_of(experiment, "pictures")), target_encoder(experiment)
    labels, splits = sorted({row.label or "" for row in rows}), ("train", "val")
    codes = np.array([labels.index(row.label or "") for row in rows])
    split_codes = np.array([splits.index(row.split or "train") for row in rows])
    embeddings = np.zeros((len(rows), encoder.dim), dtype=np.float32)
    table = CorpusTable(embeddings, codes, tuple(labels), split_codes, splits)
    data, ids = build_training_data(experiment, {"pictures": table}), [row.id for row in rows]
    return picture_data(experiment, data, ids, {row.id: row for row in rows}, encoder)


def measure(rank: int, workers: int, folder: Path) -> None:
    """Be one process: train, and write down what it took."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=workers)
    experiment, data = pickle.loads((folder / "case.pkl").read_bytes())
    before = memory("VmRSS")
    run = TrainingRun(experiment, data, rank=rank, world_size=workers)
    for _ in run.evaluations():
        pass
    moments = [value for state in run._optimizer.state.values() for value in state.values() if value.ndim]
    found = {"peak": memory("VmHWM") - before, "steps_per_s": STEPS / run.progress.train_s}
    found |= {"weights": held(list(run.model.parameters())), "moments": held(moments)}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def memory(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def held(tensors: list[Any]) -> int:
    """The bytes that this process holds of some tensors."""
    return sum(local(tensor).untyped_storage().nbytes() for tensor in tensors)


if __name__ == "__main__":
    main()
