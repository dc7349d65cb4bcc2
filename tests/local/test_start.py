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
from uml_core.training.optimizer import LeanAdamW
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
LeanAdamW([{{"params": [weight]}}]).step()
assert weight[0] < 1
print(sorted({heavy!r} & set(sys.modules)))
"""
HEAVY = {
    *("mlflow", "transformers", "timm", "peft", "sklearn", "matplotlib"),
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp"),
}

ENCODE = """
import sys
from uml_core.config import EncoderConfig
from uml_core.encoders import build_encoder
for name, modality in (("minilm_l6", "text"), ("bytes", "text"), ("logmel", "audio")):
    pooling = "tokens" if name == "bytes" else "auto"
    build_encoder(EncoderConfig(source="package", name=name, pooling=pooling), modality).load()
import uml_core.models.fine_tuned
print("timm" in sys.modules)
"""


@pytest.mark.parametrize("module", ["train.worker", "tune.trial"])
def test_a_process_that_trains_a_head_imports_nothing_heavy(module: str) -> None:
    command = [sys.executable, "-c", STEP.format(module=module, heavy=HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_only_encoders_of_pictures_import_timm() -> None:
    """timm imports torch's compiler: 1.5 s of CPU in every process."""
    done = subprocess.run([sys.executable, "-c", ENCODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
