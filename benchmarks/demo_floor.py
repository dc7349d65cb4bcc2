"""The demo's wall time against its work alone: no Ray, no MLflow but for the page's runs, no store, no start.

    python -m benchmarks.run --only demo

The work is what our own functions take for the demo's corpora on all cores (a process a core, started before):
pictures drawn, rows decoded and encoded, the two trainings, the trials of the three sweeps in packs, the evaluation,
predictions and the page. What Python takes to import is no part of it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Figure
from pipelines.demo.tour import without_pictures
from pipelines.embed.decoding import decode_rows
from pipelines.predict.here import PART_ROWS, batched, num_cores, predictions_here
from pipelines.run_data import SharedData
from pipelines.stores import store_tables
from pipelines.tune.proposals import build_proposals
from pipelines.tune.trial import one_thread, train_heads
from tune_spaces import load_space
from uml_core.config import EncoderConfig, Experiment, load_experiment, parse_experiment
from uml_core.corpora.examples.openmoji import write_openmoji
from uml_core.corpora.readers import rows_of
from uml_core.corpora.readers.inputs import stream_inputs
from uml_core.corpora.rows import Row
from uml_core.encoders import Encoder, build_encoder
from uml_core.evaluation.outcome import evaluated_run
from uml_core.evaluation.registry import chosen_evaluators
from uml_core.evaluation.registry import measure as evaluate
from uml_core.reporting.page import build_report
from uml_core.tracking.reading import experiment_runs, with_spaces
from uml_core.training.run import TrainingRun

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"
Tree = Mapping[str, Any]


def measure(directory: Path) -> Iterator[Figure]:
    """The demo, then its work; each part of that is a figure of its own."""
    started = time.perf_counter()
    environment = {**os.environ, "UML_ROOT": str(directory)}
    command = [sys.executable, "-m", "pipelines.demo", "--timings"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall_s = time.perf_counter() - started
    timings = json.loads(done.stdout.splitlines()[-1])["timings"]
    seconds = work_s(_in_folder(load_experiment(DEMO), directory), directory)
    yield Figure("demo: wall, against its work alone, s", wall_s, sum(seconds.values()), digits=1)
    for stage, value in seconds.items():
        yield Figure(f"demo's work: {stage}, s", value, digits=1)
    for stage, value in timings.items():
        if stage not in ("wall", "workers"):
            yield Figure(f"demo's driver: {stage}, s", value, digits=1)


def _in_folder(experiment: Experiment, directory: Path) -> Experiment:
    paths = {
        f"corpora.{name}.path": str(directory / corpus.path)
        for name, corpus in experiment.corpora.items()
        if corpus.path is not None
    }
    tracking = f"sqlite:///{directory}/runs/mlflow.db"
    return experiment.override({"store": str(directory / experiment.store), "tracking.uri": tracking, **paths})


def work_s(experiment: Experiment, directory: Path) -> dict[str, float]:
    """Seconds of each part of the demo's work, on the corpora, the store and the runs that the demo has left."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started

    with timed("pictures drawn"):
        write_openmoji(directory / "drawn", is_quiet=True)
    shared = SharedData(store_tables(experiment))
    with timed("two trainings"), one_thread():
        twin = {"mixing.loss_weight": dict.fromkeys(experiment.auxiliaries, 0.0)}
        run, _ = (trained(each, shared) for each in (experiment, experiment.override(twin)))
    pictures = Path(str(experiment.corpora[experiment.target].path))
    unseen = without_pictures(experiment, pictures)
    sweeps = ((experiment, "mixing_ratio"), (experiment, "controls"), (unseen, "closed_form"))
    with _processes(experiment) as pool:
        with timed("rows decoded and encoded"):
            parts = [part for corpus in experiment.corpora for part in parts_of(experiment, corpus)]
            list(pool.map(_encode, *zip(*parts, strict=True)))
        for swept, space in sweeps:
            with timed(f"trials of {space}"):
                list(pool.map(_train_pack, packs(swept, space)))
    with timed("evaluation"), one_thread():
        evaluate(evaluated_run(run), chosen_evaluators(()))
    with timed("predictions"):
        predictor = run.objective.predictor()
        rows = list(stream_inputs(pictures / "sketch", "image"))
        list(predictions_here(predictor, predictor.build_encoder(), rows))
    with timed("page"):
        uri = experiment.tracking.uri
        build_report(experiment.name, with_spaces(uri, experiment_runs(uri, experiment.name)), tracking_uri=uri)
    return seconds


def parts_of(experiment: Experiment, corpus: str) -> list[tuple[EncoderConfig, str, list[Row]]]:
    """The rows of a corpus in parts, each with what builds its encoder."""
    config, modality = experiment.encoder_of(corpus), experiment.corpora[corpus].modality
    assert config is not None, "the demo has no ready embeddings"
    return [(config, modality, part) for part in batched(rows_of(experiment, corpus), PART_ROWS)]


def trained(experiment: Experiment, shared: SharedData) -> TrainingRun:
    run = TrainingRun(experiment, shared.of(experiment))
    for _ in run.evaluations():
        pass
    return run


def packs(experiment: Experiment, space: str) -> list[list[Tree]]:
    """The trials of a space, as a sweep gives them to its processes."""
    proposals = build_proposals(load_space(space, experiment), experiment)
    found = iter(lambda: proposals.next_pack(num_cores()), [])
    return [[spec.experiment.model_dump(mode="json") for spec in pack] for pack in found]


@contextlib.contextmanager
def _processes(experiment: Experiment) -> Iterator[ProcessPoolExecutor]:
    """A process a core, each with all that it needs imported and read."""
    spawn, tree = multiprocessing.get_context("spawn"), experiment.model_dump(mode="json")
    with ProcessPoolExecutor(num_cores(), spawn, _read, (tree,)) as pool:
        list(pool.map(time.sleep, [1] * num_cores()))  # so long that each is started
        yield pool


_shared: list[SharedData] = []  # of a process


def _read(tree: Tree) -> None:
    _shared.append(SharedData(store_tables(parse_experiment(tree))))


@functools.cache
def _encoder(config: EncoderConfig, modality: str) -> Encoder:
    encoder = build_encoder(config, modality)
    encoder.load()
    return encoder


def _encode(config: EncoderConfig, modality: str, part: list[Row]) -> None:
    torch.set_num_threads(1)
    encoder = _encoder(config, modality)
    encoder.encode_all(decode_rows(part, encoder).decoded, encoder.cpu_batch_size)


def _train_pack(trees: Sequence[Tree]) -> None:
    with one_thread():
        train_heads([parse_experiment(tree) for tree in trees], _shared[0], on_end=lambda *_: None)
