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
from uml_core.training.optimizer import FusedAdamW
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

ENCODE = """
import io, sys, torch
from PIL import Image
from uml_core.config import EncoderConfig
from uml_core.encoders import build_encoder
from uml_core.encoders.image.lean_timm import _disable
def is_compiled():
    return torch.compiler.is_compiling()
picture = io.BytesIO()
Image.new("RGB", (64, 64), "red").save(picture, "PNG")
for name in ("tf_efficientnet_lite0", "test_vit"):
    encoder = build_encoder(EncoderConfig(source="timm", name=name, weights="random"), "image")
    encoder.load()
    encoder.encode([encoder.decode(picture.getvalue())])
imported = "torch._dynamo" in sys.modules
marked = _disable(is_compiled, True)
before, after = marked(), torch.compile(marked, backend="eager")()
print(imported, before, after, torch.compile(is_compiled, backend="eager")())
"""


@pytest.mark.parametrize("module", ["train.worker", "tune.trial"])
def test_a_process_that_trains_a_head_imports_nothing_heavy(module: str) -> None:
    command = [sys.executable, "-c", STEP.format(module=module, heavy=HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_process_that_encodes_pictures_imports_no_compiler_until_one_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", ENCODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False False False True"), done.stderr
