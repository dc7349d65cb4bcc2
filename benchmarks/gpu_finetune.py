"""Training a vision transformer in bfloat16 on one device: `TrainingRun` against a bare loop in the same process.

Ours does what a user's run does: pictures kept decoded in memory, stacked, copied to the device and cropped there, a
look at loss and gradient at every step. The bare loop has one batch on the device already, normalised, and looks at
nothing: autocast, channels-last, fused AdamW. Weights and pictures are random. An evaluation is in neither.

Time is the wall's without the profiler; shares come from a few more steps under it. Idle: 1 − busy / wall of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import timm
import torch
from torch import nn

from benchmarks.figures import Figure
from benchmarks.gpu_device import Bench, DeviceTime, training_flops
from uml_core.config import Experiment, parse_experiment
from uml_core.data.training_data import build_training_data
from uml_core.feed.pictures import PictureData
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.optimizer import build_optimizer
from uml_core.training.run import TrainingRun, train_step

CLASSES, VALIDATION, PROFILED, WARMUP = 100, 64, 5, 3


@dataclass(frozen=True)
class Case:
    """A model of timm, its input's side in pixels, and how long it is trained on how many pictures."""

    label: str
    name: str
    side: int
    batch: int
    steps: int
    pictures: int


FULL = (
    Case("ViT-S/14", "vit_small_patch14_dinov2", 224, batch=256, steps=40, pictures=2048),
    Case("ViT-B/16", "vit_base_patch16_224", 224, batch=256, steps=40, pictures=2048),
)
SMALL = (Case("test_vit", "test_vit", 32, batch=4, steps=3, pictures=128),)


@dataclass(frozen=True)
class Pace:
    """Samples per second after a warm-up, seconds of the first stretch, and what the device does in a step."""

    samples_per_s: float
    first_s: float
    step_s: float
    busy: DeviceTime
    wait_share: float = 0.0  # of the wall: assembling batches

    @property
    def idle_share(self) -> float:
        """Share of a step in which the device does nothing."""
        return self.busy.idle_share(self.step_s)


def measure(bench: Bench, *, compiled: bool) -> Iterator[Figure]:
    """Measure every model, with train.compile or without; a compiled bare loop is set against compiled steps."""
    for case in SMALL if bench.small else FULL:
        flops = training_flops(lambda case=case: _module(case), (1, 3, case.side, case.side))
        bare = bare_pace(case, bench, compiled=compiled)
        ours = our_pace(case, bench, compiled=compiled)
        name = f"{case.label}, {case.side} pixels, batch {case.batch}, bfloat16{', compiled' if compiled else ''}"
        yield Figure(f"{name}: samples/s", ours.samples_per_s, bare.samples_per_s)
        if bench.peak_flops is not None:
            ours_mfu, bare_mfu = (pace.samples_per_s * flops / bench.peak_flops for pace in (ours, bare))
            peak = f"{flops / 1e9:.1f} GFLOP a sample, of {bench.peak_flops / 1e12:g} TFLOP/s"
            yield Figure(f"{name}: model FLOPs utilisation, {peak}", ours_mfu, bare_mfu, digits=3)
        yield Figure(f"{name}: s of the first {case.steps} steps, start included", ours.first_s, bare.first_s, digits=1)
        yield Figure(f"{name}: device idle, share of the wall", ours.idle_share, bare.idle_share or None, digits=3)
        yield Figure(f"{name}: assembling batches, share of the wall", ours.wait_share, digits=3)
        for kind in dict.fromkeys([*ours.busy.shares, *bare.busy.shares]):
            our_share, bare_share = (pace.busy.shares.get(kind, 0.0) for pace in (ours, bare))
            yield Figure(f"{name}: {kind}, share of the device's time", our_share, bare_share or None, digits=3)


def our_pace(case: Case, bench: Bench, *, compiled: bool) -> Pace:
    """Train twice `steps` steps as `pipelines.train` does, and time the second half."""
    experiment = experiment_of(case, compiled=compiled)
    run = TrainingRun(experiment, pictures_of(experiment, case), device=str(bench.device))
    seconds, waits = [], []
    for _ in run.evaluations():
        seconds.append(run.progress.train_s)
        waits.append(run.progress.data_wait_s)
    wall_s = seconds[1] - seconds[0]
    step = steps_of(run)
    for _ in range(WARMUP):
        step()
    busy = per_step(bench, step)
    wait_share = (waits[1] - waits[0]) / wall_s
    return Pace(case.steps * case.batch / wall_s, seconds[0], wall_s / case.steps, busy, wait_share)


def steps_of(run: TrainingRun) -> Callable[[], object]:
    """What makes one step more of a finished run, without the loop's own accounts: for the profiler."""
    gradient, scales = run.objective.gradient(), run.objective.learning_rate_scales()
    optimizer = build_optimizer(run.model, run.experiment.optim, scales=scales)
    run.model.train()

    def step() -> object:
        batch = run.objective.batch(run.progress.step, ["pictures"])
        assert batch is not None
        return train_step(gradient, optimizer, batch)

    return step


def bare_pace(case: Case, bench: Bench, *, compiled: bool) -> Pace:
    """Train a batch that lies on the device, over and over."""
    torch.manual_seed(0)
    model = _module(case, num_classes=CLASSES).to(bench.device, memory_format=torch.channels_last).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    pixels = torch.randn(case.batch, 3, case.side, case.side, device=bench.device)
    pixels = pixels.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (case.batch,), device=bench.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(pixels), labels)
        loss.backward()
        optimizer.step()

    def stretch() -> None:
        for _ in range(case.steps):
            step()

    first_s, wall_s = bench.seconds_of(stretch), bench.seconds_of(stretch)
    return Pace(case.steps * case.batch / wall_s, first_s, wall_s / case.steps, per_step(bench, step))


def per_step(bench: Bench, step: Callable[[], object]) -> DeviceTime:
    """What the device does in one step, as the mean of a few."""

    def several() -> None:
        for _ in range(PROFILED):
            step()

    found = bench.busy(several)
    return DeviceTime(found.busy_s / PROFILED, found.shares)


def experiment_of(case: Case, *, compiled: bool) -> Experiment:
    """The experiment: all of the encoder is trained, with the target alone, at the defaults of the house."""
    return parse_experiment(
        {
            "name": "gpu",
            "store": "store",
            "target": "pictures",
            "corpora": {"pictures": {"modality": "image", "format": "folder", "path": "pictures"}},
            "encoders": {
                "image": {"source": "timm", "name": case.name, "image_size": case.side, "weights": "random"},
            },
            "model": {"backbone": "finetune"},
            "train": {
                "max_steps": 2 * case.steps,
                "eval_every": case.steps,
                "batch_size": case.batch,
                "precision": "bfloat16",
                "compile": compiled,
            },
        }
    )


def pictures_of(experiment: Experiment, case: Case) -> PictureData:
    """Random pictures as if they had been decoded and kept; no file is read."""
    rng = np.random.default_rng(0)
    rows = case.pictures + VALIDATION
    labels, names = np.arange(rows) % CLASSES, tuple(f"{label:03d}" for label in range(CLASSES))
    splits = (np.arange(rows) >= case.pictures).astype(np.int64)
    embeddings = rng.standard_normal((rows, _width(case)), dtype=np.float32)
    table = CorpusTable(embeddings, labels, names, splits, ("train", "val"))
    data = build_training_data(experiment, {"pictures": table})
    pixels = rng.integers(0, 256, size=(rows, case.side, case.side, 3), dtype=np.uint8)
    return PictureData(**vars(data), raw=(), keep=True, picture_bytes=pixels[0].nbytes, kept=dict(enumerate(pixels)))


def _width(case: Case) -> int:
    with torch.device("meta"):
        return int(_module(case).num_features)


def _module(case: Case, *, num_classes: int = 0) -> nn.Module:
    return timm.create_model(case.name, num_classes=num_classes, img_size=case.side)
