"""A plain, well-written training loop over embeddings, and the sizes it is measured at: what training heads is set
against, on a CPU and on a GPU. It imports neither ray nor the pipelines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import nn

from uml_core.config import Experiment
from uml_core.store.corpus_table import CorpusTable

STEPS, WARMUP, CLASSES, BATCH = 4000, 200, 100, 32
WIDTHS = {"target": 384, "names": 768}


def bare_steps_per_s(
    tables: Mapping[str, CorpusTable], trial: Experiment, *, steps: int = STEPS, device: str = "cpu"
) -> float:
    """Run a trial as a plain, well-written loop: resident tensors, sampled indices, fused AdamW, no evaluation."""
    names = [name for name in trial.corpora if trial.loss_weight(name) > 0]
    values = {name: torch.from_numpy(tables[name].embeddings).to(device) for name in names}
    labels = {name: torch.from_numpy(tables[name].label_codes).to(device) for name in names}
    widths = {name: tables[name].embeddings.shape[1] for name in trial.corpora}
    shared = widths.get("names", widths["target"])
    head = nn.Linear(shared, CLASSES, bias=False, device=device)
    project = nn.Identity()
    if shared != widths["target"]:
        project = nn.Linear(widths["target"], shared, bias=False, device=device)
    learnable = trial.model.learnable_scale
    scales = {name: nn.Parameter(torch.ones((), device=device), requires_grad=learnable) for name in names}
    trained = [value for value in (*project.parameters(), *head.parameters(), *scales.values()) if value.requires_grad]
    decay, size = trial.optim.weight_decay, trial.train.batch_size
    optimizer = torch.optim.AdamW(trained, lr=trial.optim.lr, weight_decay=decay, fused=True)
    started = time.perf_counter()
    for step in range(steps + WARMUP):
        if step == WARMUP:
            _finish(device)
            started = time.perf_counter()
        index = {name: torch.randint(len(values[name]), (size,), device=device) for name in names}
        hidden = {name: values[name][rows] for name, rows in index.items()}
        hidden["target"] = project(hidden["target"])
        losses = [
            trial.loss_weight(name)
            * nn.functional.cross_entropy(scales[name] * head(hidden[name]), labels[name][index[name]])
            for name in names
        ]
        loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    _finish(device)
    return steps / (time.perf_counter() - started)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
