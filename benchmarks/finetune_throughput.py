"""Samples/s of training an image encoder with `pipelines.train` against a bare loop over a torch DataLoader.

Both train timm's test_vit (0.3 million weights at 160 × 160 pixels, random) on the same JPEG files with random resized
crops and flips, batch 32. So small a model shows what feeding it costs; with a large one, both wait for the model.
The bare loop decodes every picture anew at every epoch, with one DataLoader worker, as `pictures.keep=stream` does with
one CPU beside the training worker; `pictures.keep=memory` decodes once. Auxiliary corpora are off on both sides.

Start and steady state are figures apart, read off the same marks on both sides: seconds after some steps. The steady
state leaves out the first EVERY steps, and as many of ours at the end: what is decoded ahead by the first mark was not
paid for, and what the last steps need is. The start is what the first EVERY steps took beyond that rate.
`measure_compiled` sets `train.compile` beside training without it, in one process, with nothing compiled before.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.figures import Figure, experiment_in, step_results, write_noise
from pipelines.embed import step as embed
from pipelines.run_data import load_data
from uml_core.config import Experiment
from uml_core.tracking.client import mlflow_client
from uml_core.training.run import TrainingRun

CLASSES, PER_CLASS, SIDE, BATCH, LOADERS = 4, 100, 256, 32, 1
STEPS, BARE_STEPS, EVERY = 240, 160, 40
COMPILED_STEPS, WARMUP = 60, 3


def write_pictures(directory: Path) -> Experiment:
    """Write smooth noise as JPEG files of 256 × 256 pixels; returns an experiment that trains the encoder on them."""
    files = [
        directory / "pictures" / split / f"class-{label}" / f"{index}.jpg"
        for split, count in (("train", PER_CLASS), ("val", 2))
        for label in range(CLASSES)
        for index in range(count)
    ]
    write_noise(files, blocks=(16, 16), size=(SIDE, SIDE), quality=90)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), directory / "weights.pth")
    return experiment_in(
        directory,
        {
            "target": "pictures",
            "corpora": {"pictures": {"modality": "image", "format": "folder", "path": str(directory / "pictures")}},
            "encoders": {
                "image": {"source": "timm", "name": "test_vit", "weights": str(directory / "weights.pth")},
            },
            "model": {"backbone": "finetune"},
            "train": {"max_steps": STEPS, "eval_every": EVERY, "batch_size": BATCH, "patience": STEPS},
        },
    )


class JpegFiles(Dataset[Any]):
    """The train files with timm's own training transform."""

    def __init__(self, directory: Path) -> None:
        self._files = sorted((directory / "pictures" / "train").rglob("*.jpg"))
        size = (3, 160, 160)
        self._transform = create_transform(size, is_training=True, scale=(0.25, 1.0), color_jitter=None)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self._files[index]
        return self._transform(Image.open(file).convert("RGB")), int(file.parent.name[-1])


@dataclass(frozen=True)
class Rate:
    """Samples per second once training runs, and the seconds that it took to come to that."""

    samples_per_s: float
    start_s: float

    @classmethod
    def of(cls, marks: Mapping[int, float], last: int) -> Rate:
        """Read the rate off the seconds since the start after some steps, from step EVERY to step `last`."""
        rate = (last - EVERY) * BATCH / (marks[last] - marks[EVERY])
        return cls(rate, marks[EVERY] - EVERY * BATCH / rate)


def bare_rate(directory: Path) -> Rate:
    """Run a plain loop: DataLoader with persistent workers, fused AdamW, no evaluation."""
    model = timm.create_model("test_vit", num_classes=CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    started, step, marks = time.perf_counter(), 0, {}
    loader = DataLoader(
        JpegFiles(directory), BATCH, shuffle=True, drop_last=True, num_workers=LOADERS, persistent_workers=True
    )
    while True:
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(model(pixels.to(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            marks[step] = time.perf_counter() - started
            if step == BARE_STEPS:
                return Rate.of(marks, BARE_STEPS)


def our_rate(experiment: Experiment, file: Path, keep: str) -> Rate:
    """Run `pipelines.train` as a user does; its seconds of training include every wait for pictures.

    Ray starts its workers with a niceness of 15: beside other people's work that would measure who goes first.
    """
    run_id = step_results("train", str(file), f"pictures.keep={keep}", RAY_worker_niceness="0")["run_id"]
    rates = mlflow_client(experiment.tracking.uri).get_metric_history(run_id, "perf/samples_per_s")
    return Rate.of({rate.step: rate.step * BATCH / rate.value for rate in rates}, STEPS - EVERY)


@dataclass(frozen=True)
class Pace:
    """Seconds of the first step, and steps per second after it; evaluations are in neither."""

    first_step_s: float
    steps_per_s: float


def pace_of(experiment: Experiment) -> Pace:
    """Train in this process, on pictures kept in memory."""
    run = TrainingRun(experiment.override({"train.eval_every": 1}), load_data(experiment))
    seconds = [run.progress.train_s for _ in run.evaluations()]  # at every step, so far
    started, ended = seconds[WARMUP - 1], seconds[-1]
    return Pace(seconds[0], (len(seconds) - WARMUP) / (ended - started))


def compiled_figures(experiment: Experiment, backbone: str) -> list[Figure]:
    """Measure a backbone's training with train.compile and without."""
    plain = experiment.override({"model.backbone": backbone, "train.max_steps": COMPILED_STEPS})
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # else the second measurement of a machine finds its code
        bare, ours = pace_of(plain), pace_of(plain.override({"train.compile": True}))
    return [
        Figure(f"{backbone}: steps/s, compiled against not", ours.steps_per_s, bare.steps_per_s, digits=1),
        Figure(f"{backbone}: s of the first step, compiled against not", ours.first_step_s, bare.first_step_s, 1),
    ]


def measure(directory: Path) -> list[Figure]:
    """Measure bare, ours kept, ours streamed, bare: the machine's drift falls on both sides."""
    experiment = embedded(directory)
    first = bare_rate(directory)
    kept, streamed = (our_rate(experiment, directory / "experiment.yaml", keep) for keep in ("memory", "stream"))
    last = bare_rate(directory)
    bare = (first.samples_per_s + last.samples_per_s) / 2
    start = (first.start_s + last.start_s) / 2
    return [
        Figure("finetune: samples/s, pictures kept in memory", kept.samples_per_s, bare),
        Figure("finetune: samples/s, pictures streamed", streamed.samples_per_s, bare),
        Figure("finetune: s of start beyond that rate, kept in memory (the first decoding)", kept.start_s, start, 1),
        Figure("finetune: the same, streamed", streamed.start_s, start, 1),
    ]


def measure_compiled(directory: Path) -> list[Figure]:
    """Measure steps with train.compile and without, of all weights and of adapters."""
    experiment = embedded(directory)
    return [*compiled_figures(experiment, "finetune"), *compiled_figures(experiment, "lora")]


def embedded(directory: Path) -> Experiment:
    """Write the pictures and embed them; returns the experiment."""
    experiment = write_pictures(directory)
    embed.run(experiment)
    return experiment
