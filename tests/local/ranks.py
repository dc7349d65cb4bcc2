"""Two processes that train together, without Ray: what each of them does, and what it leaves behind.

On CPUs they talk over gloo, on GPUs, one each, over NCCL.

A module of its own, so that a process imports what it trains with and not the tests.
"""

from __future__ import annotations

import copy
import faulthandler
import functools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch.distributed.tensor import DTensor

from uml_core.errors import InputError
from uml_core.training.run import TrainingRun

Work = Callable[[int, str], Any]
NUM_RANKS = 2
STUCK_S = 180  # all cases take 10 to 60 s


@dataclass
class Case:
    """A run for the ranks: its experiment and data, a state to go on from, and evaluations after which it stops."""

    experiment: Any
    data: Any
    state: dict[str, Any] | None = None
    evaluations: int | None = None


@dataclass
class Left:
    """What a rank leaves of a case."""

    evaluations: list[tuple[int, float, float, dict[str, float]]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    held: dict[str, int] = field(default_factory=dict)  # bytes of the encoder that this rank holds, by kind
    whole: int = 0  # bytes of all the encoder's weights
    trained: int = 0  # bytes of those that are trained


def train_on_ranks(directory: Path, cases: dict[str, Case], *, device: str = "cpu") -> list[dict[str, Left]]:
    """Train every case on two processes; returns what each rank left, on the CPU."""
    return [lefts for (lefts,) in on_ranks(directory, training(cases), device=device)]


def training(cases: dict[str, Case]) -> Work:
    """What trains every case on a rank."""
    return functools.partial(_train_all, pickle.dumps(cases))


def on_ranks(directory: Path, *work: Work, device: str = "cpu") -> list[list[Any]]:
    """Call functions of rank and device on two processes; returns what each of these returned, on the CPU.

    Two ranks once waited for each other for ever before they had trained anything, for a reason that nobody could tell:
    now they end, the warning shows where they were, and they are tried once more.
    """
    try:
        return _on_ranks(directory, work, device)
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException):
        stacks = [file.read_text(encoding="utf-8") for file in sorted(directory.glob("stuck-*"))]
        if not any(stacks):
            raise
        warnings.warn("ranks were stuck, and were tried again:\n" + "\n".join(stacks), stacklevel=2)
        return _on_ranks(directory.with_name(f"{directory.name}-again"), work, device)


def _on_ranks(directory: Path, work: tuple[Work, ...], device: str) -> list[list[Any]]:
    directory.mkdir()
    torch.multiprocessing.spawn(_rank, (directory, device, work), nprocs=NUM_RANKS)
    files = [directory / f"{rank}.pt" for rank in range(NUM_RANKS)]
    return [torch.load(file, map_location="cpu", weights_only=False) for file in files]


def _rank(rank: int, directory: Path, device: str, work: tuple[Work, ...]) -> None:
    stacks = (directory / f"stuck-{rank}").open("w", encoding="utf-8")
    faulthandler.dump_traceback_later(STUCK_S, exit=True, file=stacks)
    torch.set_num_threads(1)
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
        backend, device = "nccl", f"cuda:{rank}"
    torch.distributed.init_process_group(backend, f"file://{directory}/meeting", rank=rank, world_size=NUM_RANKS)
    torch.save([each(rank, device) for each in work], directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _train_all(pickled: bytes, rank: int, device: str) -> dict[str, Left]:
    cases: dict[str, Case] = pickle.loads(pickled)
    return {name: _train(case, rank, device) for name, case in cases.items()}


def _train(case: Case, rank: int, device: str) -> Left:
    run = TrainingRun(case.experiment, case.data, device=device, rank=rank, world_size=NUM_RANKS)
    left = Left()
    if case.state is not None:
        run.load_state_dict(case.state)
    try:
        for evaluation in run.evaluations():
            left.evaluations.append((evaluation.step, evaluation.val_accuracy, evaluation.val_nll, evaluation.losses))
            if len(left.evaluations) == case.evaluations:
                break
    except InputError as error:
        left.error = str(error)
        return left
    left.state = copy.deepcopy(run.state_dict())
    parameters = list(run.model.backbone.parameters())
    left.whole = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    left.trained = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    moments = [run._optimizer.state[parameter] for parameter in trained]
    left.held = {
        "weights": _held(parameters),
        "gradients": _held([parameter.grad for parameter in trained if parameter.grad is not None]),
        **{key: _held([moment[key] for moment in moments]) for key in ("exp_avg", "exp_avg_sq")},
    }
    return left


def _held(tensors: list[Any]) -> int:
    """Return the bytes that this rank holds of some tensors, by the memory they stand on."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    storages = {storage.data_ptr(): storage.nbytes() for tensor in own if len(storage := tensor.untyped_storage())}
    return sum(storages.values())  # a block's gradients stand on one
