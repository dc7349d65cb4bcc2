"""What a process that trains a head imports: seconds at the start of every worker and of every process of a sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP = """
import sys, torch
import pipelines.{module}
from uml_core.optimisation import FusedAdamW
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
FusedAdamW([{{"params": [weight]}}]).step()
assert weight[0] < 1
print(sorted({heavy!r} & set(sys.modules)))
"""
HEAVY = {
    *("mlflow", "transformers", "timm", "peft", "sklearn", "matplotlib"),
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp"),
}


@pytest.mark.parametrize("module", ["train_loop", "trial_loop"])
def test_a_process_that_trains_a_head_imports_nothing_heavy(module: str) -> None:
    command = [sys.executable, "-c", STEP.format(module=module, heavy=HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
