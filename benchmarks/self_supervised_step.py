"""Seconds of a self-supervised training step against the research code's, in one run on one thread.

    python -m benchmarks.self_supervised_step

Two corpora of 128 sequences a step, 371 and 300 wide, float32, lengths uniform from 5 to 50; H = 40, 5 layers, 5 heads,
feed-forward 2048, dropout .1. Both sides make whole steps: batch, forward, backward, Adam. The research step is
nn.TransformerEncoder in training mode, post-norm, with a boolean causal mask and no padding mask, sequences padded to
50 and assembled beforehand, one pass a modality. The rewrite is what a careful user would write: all sequences of a
step, padded, in one pass, with F.scaled_dot_product_attention.

The floor, for R rows: six products of R × 40 × 2048 a layer (two forward, four backward) are
2 · 6 · 40 · 2048 · 5 R = 4.9 MFLOP · R. Packed, R is 6,800 a step; padded it is 12,800.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.figures import TABLE_HEAD, Figure, machine
from uml_core.config import Experiment, parse_experiment
from uml_core.data.sequence_data import build_sequence_data
from uml_core.store.sequence_table import SequenceTable
from uml_core.training.optimizer import build_optimizer
from uml_core.training.run import TrainingRun, train_step

WIDTHS = {"vision": 371, "text": 300}
BATCH, SHORTEST, LONGEST, H, LAYERS, HEADS, HIDDEN = 128, 5, 50, 40, 5, 5, 2048
SEQUENCES, STEPS, ROUNDS = 512, 4, 3


def tables(seed: int = 0) -> dict[str, SequenceTable]:
    """Random sequences of both corpora."""
    rng = np.random.default_rng(seed)
    made = {}
    for corpus, width in WIDTHS.items():
        lengths = rng.integers(SHORTEST, LONGEST + 1, size=SEQUENCES)
        tokens = rng.standard_normal((int(lengths.sum()), width), dtype=np.float32)
        splits = np.where(np.arange(SEQUENCES) % 32 == 0, 1, 0)  # a few for validation, which is not timed
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        labels = np.arange(SEQUENCES) % 2
        made[corpus] = SequenceTable(tokens, starts, lengths, None, labels, ("a", "b"), splits, ("train", "val"))
    return made


def experiment() -> Experiment:
    """The experiment that trains on the tables."""
    corpora = {name: {"modality": "sequence", "format": "tokens", "path": name} for name in WIDTHS}
    model = {"width": H, "layers": LAYERS, "heads": HEADS, "feedforward": HIDDEN, "dropout": 0.1, "positions": "none"}
    tree = {"name": "step", "store": "store", "target": "vision", "corpora": corpora, "sequence_model": model}
    return parse_experiment({**tree, "objective": "self_supervised", "train": {"batch_size": BATCH}})


def our_step() -> Callable[[], None]:
    """A step of `uml_core.training.run` on packed sequences."""
    settings = experiment()
    run = TrainingRun(settings, build_sequence_data(settings, tables()))
    corpora, optimizer, gradient = tuple(WIDTHS), build_optimizer(run.model, settings.optim), run.objective.gradient()
    run.model.train()
    count = iter(range(10**9))

    def step() -> None:
        batch = run.objective.batch(next(count), corpora)
        assert batch is not None
        train_step(gradient, optimizer, batch)

    return step


def padded_batch() -> dict[str, Tensor]:
    """A batch of each corpus (B, T, D), padded with zeros to the longest."""
    batch = {}
    for corpus, table in tables().items():
        parts = [
            torch.from_numpy(table.tokens[start : start + length])
            for start, length in zip(table.starts[:BATCH], table.lengths[:BATCH], strict=True)
        ]
        values = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        batch[corpus] = functional.pad(values, (0, 0, 0, LONGEST - values.shape[1]))
    return batch


def research_step() -> Callable[[], None]:
    """The step of the paper's release."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(H, HEADS, HIDDEN, dropout=0.1, batch_first=True)
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).train()
    inputs = {corpus: nn.Linear(width, H) for corpus, width in WIDTHS.items()}
    outputs = {corpus: nn.Linear(H, width) for corpus, width in WIDTHS.items()}
    modules = nn.ModuleList([encoder, *inputs.values(), *outputs.values()])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-3)
    batch, mask = padded_batch(), torch.ones(LONGEST, LONGEST, dtype=torch.bool).triu(1)

    def step() -> None:
        optimizer.zero_grad()
        losses = []
        for corpus, values in batch.items():
            predicted = outputs[corpus](encoder(inputs[corpus](values), mask=mask))
            losses.append(functional.mse_loss(predicted[:, :-1], values[:, 1:]))
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


class RewrittenLayer(nn.Module):
    """A post-norm layer on torch's fused attention (which takes no dropout on a CPU, so it has none on its weights)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_in, self.attention_out = nn.Linear(H, 3 * H), nn.Linear(H, H)
        self.feed_forward = nn.Sequential(nn.Linear(H, HIDDEN), nn.ReLU(), nn.Dropout(0.1), nn.Linear(HIDDEN, H))
        self.norms, self.drop = nn.ModuleList([nn.LayerNorm(H), nn.LayerNorm(H)]), nn.Dropout(0.1)

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output (B, T, H)."""
        query, key, value = self.attention_in(values).view(*values.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        branch = self.attention_out(attended.transpose(1, 2).reshape(values.shape))
        values = self.norms[0](values + self.drop(branch))
        return self.norms[1](values + self.drop(self.feed_forward(values)))


def rewritten_step() -> Callable[[], None]:
    """The step of a plain rewrite: one padded pass for both corpora."""
    torch.manual_seed(0)
    trunk = nn.Sequential(*(RewrittenLayer() for _ in range(LAYERS))).train()
    inputs = {corpus: nn.Linear(width, H) for corpus, width in WIDTHS.items()}
    outputs = {corpus: nn.Linear(H, width) for corpus, width in WIDTHS.items()}
    modules = nn.ModuleList([trunk, *inputs.values(), *outputs.values()])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-3, fused=True)
    batch = padded_batch()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        hidden = trunk(torch.cat([inputs[corpus](values) for corpus, values in batch.items()])).split(BATCH)
        losses = [
            functional.mse_loss(outputs[corpus](part)[:, :-1], values[:, 1:])
            for (corpus, values), part in zip(batch.items(), hidden, strict=True)
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], num_steps: int) -> float:
    """The mean seconds of a step."""
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - started) / num_steps


def measure() -> list[Figure]:
    """Time the three in turn, several rounds: what else the machine does falls on all of them. The best counts."""
    torch.set_num_threads(1)
    steps = {"ours": our_step(), "research": research_step(), "rewrite": rewritten_step()}
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            best[name] = min(best[name], seconds(step, STEPS if name == "ours" else 1))
    rate = {name: 1 / value for name, value in best.items()}
    return [
        Figure("self-supervised: steps/s against the research step", rate["ours"], rate["research"], digits=2),
        Figure("self-supervised: steps/s against the plain SDPA rewrite", rate["ours"], rate["rewrite"], digits=2),
    ]


if __name__ == "__main__":
    print(f"\n{machine()}, one thread\n\n{TABLE_HEAD}")
    for each in measure():
        print(each.row())
