"""What processes import: seconds before a mistake is told, and at the start of every worker and process of a sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import STEPS

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

TELL = """
import contextlib, io, json, sys
from pipelines import STEPS
from pipelines.__main__ import main

def told(*line):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(list(line))
    except SystemExit as end:  # argparse's
        status = end.code
    print(json.dumps([line, status, said.getvalue(), sorted({heavy!r} & set(sys.modules))]))

for step in STEPS:
    told(step, "--help")
    told(step, "--nonsense")
for line in {lines!r}:
    told(*line)
"""
EXPERIMENT = """
name: vectors
store: store
target: target
corpora:
  target: {modality: image, format: embeddings, path: target.parquet}
  names: {modality: text, format: embeddings, path: names.parquet}
  sounds: {modality: audio, format: embeddings, path: sounds.parquet}
"""
MISTAKES = {  # a line, and what is said of it; EXPERIMENT has no store yet
    "embed none.yaml": "none.yaml does not exist",
    "embed EXPERIMENT corpora.names.path=/nowhere": "corpora.names.path is /nowhere, which does not exist",
    "train EXPERIMENT optm.lr=1": "did you mean 'optim'",
    "train EXPERIMENT": "run python -m pipelines.embed",
    "advise EXPERIMENT": "run python -m pipelines.embed",
    "directions EXPERIMENT": "run python -m pipelines.embed",
    "tune EXPERIMENT --space controls": "run python -m pipelines.embed",
    "tune EXPERIMENT --space contrls": "did you mean 'controls'",
    "evaluate EXPERIMENT": "has no experiment 'vectors'",
    "evaluate EXPERIMENT --analyses nuerons": "did you mean 'neurons'",
    "evaluate EXPERIMENT --evaluators knn_prob": "did you mean 'knn_probe'",
    "report EXPERIMENT": "has no experiment 'vectors'",
    "bridge none.yaml --output out": "none.yaml does not exist",
    "run EXPERIMENT --steps trian": "did you mean 'train'",
    "demo optm.lr=1": "did you mean 'optim'",
    "predict --model runs:/0/model --input EXPERIMENT --output o.parquet": "cannot be fetched",
    "predict --model nowhere --input EXPERIMENT --output o.parquet": "nowhere, which does not exist",
    "predict --model runs:/0/model --input nowhere --output o.parquet": "nowhere, which does not exist",
    "predict --model runs:/0/model --input EXPERIMENT --output o.parquet --top few": "give a number of classes",
    "export --model runs:/0/model --output out": "cannot be fetched",
    "theory --trials few": "expected a whole number",
    "completion fsh": "invalid choice",
    "trian": "did you mean 'train'",
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


def test_help_and_mistakes_import_nothing_that_takes_seconds(tmp_path: Path) -> None:
    file = tmp_path / "vectors.yaml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    for corpus in ("target", "names", "sounds"):
        (tmp_path / f"{corpus}.parquet").touch()
    lines = [line.replace("EXPERIMENT", str(file)).split() for line in MISTAKES]
    heavy = {"torch", "mlflow", "matplotlib", "pandas", "sklearn", "transformers"}
    command = [sys.executable, "-c", TELL.format(heavy=heavy, lines=lines)]
    environment = {**os.environ, "UML_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 2 * len(STEPS) + len(MISTAKES), done.stderr
    assert not [(line, imported) for line, _, _, imported in told if imported]
    for line, status, said, _ in told[: 2 * len(STEPS)]:
        assert (status, said.startswith("usage: ")) == (0 if line[1] == "--help" else 2, True), said
    for (line, status, said, _), part in zip(told[2 * len(STEPS) :], MISTAKES.values(), strict=True):
        assert status == 2, line
        assert part in said.splitlines()[-1], line
    assert len(list(tmp_path.iterdir())) == 4, "nothing is written"


@pytest.mark.parametrize("module", ["train.worker", "tune.trial"])
def test_a_process_that_trains_a_head_imports_nothing_heavy(module: str) -> None:
    command = [sys.executable, "-c", STEP.format(module=module, heavy=HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_only_encoders_of_pictures_import_timm() -> None:
    """timm imports torch's compiler: 1.5 s of CPU in every process."""
    done = subprocess.run([sys.executable, "-c", ENCODE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize(
    ("form", "line", "said"),
    [
        ("json", ["experiment.yaml"], "error: experiment file experiment.yaml does not exist"),
        ("json", ["experiment.yaml", "--flag"], "python -m pipelines.embed: error: unrecognized arguments: --flag"),
        ("xml", [], "error: UML_LOG is xml; set it to json"),
    ],
)
def test_what_stderr_says_is_json_where_it_is_asked_for(
    form: str, line: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "pipelines", "embed", *line]
    environment = {**os.environ, "UML_LOG": form, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    if form == "json":
        records = [json.loads(each) for each in done.stderr.splitlines()]
        assert all(each.keys() >= {"time", "level", "step", "message"} for each in records)
        assert (records[-1]["level"], records[-1]["step"]) == ("ERROR", "embed")
        last = records[-1]["message"]
    assert last.startswith(said)


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [("1 / 0", 1, "ZeroDivisionError: division by zero"), ("raise KeyboardInterrupt", 130, "KeyboardInterrupt: ")],
)
def test_a_fault_is_one_json_object_and_stdout_stays_as_it_is(
    fault: str, status: int, message: str, tmp_path: Path
) -> None:
    code = "import argparse\nfrom pipelines.command_line import guarded\ndef body(given):\n    print('table')\n"
    code += f"    {fault}\n"
    code += "raise SystemExit(guarded(argparse.ArgumentParser(prog='uml train'), body, []))"
    environment = {**os.environ, "UML_LOG": "json", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "table\n")
    (said,) = map(json.loads, done.stderr.splitlines())
    assert (said["level"], said["message"]) == ("CRITICAL", message)
    assert "in body" in said["traceback"]


def test_a_machine_too_busy_to_start_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from pipelines.ray_session import ray_session
    from uml_core.errors import InputError

    def start(**_: object) -> None:  # as Ray's own node does, after half a minute of waiting
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(InputError, match="did not start within 30 s"), ray_session():
        pass
