"""Target-only batch inference (Ray Data).

In: a logged model and a folder of new files (or a table of sentences). Out: one Parquet file with columns id (path
relative to the input), prediction and probability; unreadable inputs go to FILE.rejected.parquet with their reason.

    python -m pipelines.predict --model runs:/RUN_ID/model --input FOLDER --output predictions.parquet

No experiment file and no auxiliary corpus are needed. The tracking URI is --tracking-uri, else $MLFLOW_TRACKING_URI,
else the experiment file's default.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from pipelines.embed import Batch, decode_part, set_encoder_threads
from pipelines.runtime import Summary, absolute_place, guarded, num_gpus, ray_session
from uml_core.config import CorpusConfig, TrackingConfig
from uml_core.corpora.inputs import list_inputs
from uml_core.corpora.ready import read_ready_embeddings
from uml_core.errors import InputError
from uml_core.serving import TargetPredictor
from uml_core.store import Part, RejectedRow, plan_parts
from uml_core.tracking import load_predictor

PART_ROWS = 256
SCHEMA = pa.schema([("id", pa.string()), ("prediction", pa.string()), ("probability", pa.float64())])


def main(argv: list[str] | None = None) -> int:
    """Predict the classes of new inputs."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.predict",
        description="Predict the classes of new files of the target modality with a trained model.",
        epilog="example: python -m pipelines.predict --model runs:/RUN_ID/model --input photos --output out.parquet",
    )
    parser.add_argument("--model", required=True, help="runs:/RUN_ID/model, models:/NAME@ALIAS, or a local folder")
    parser.add_argument("--input", required=True, help="folder of files, or a table (.jsonl, .csv, .parquet)")
    parser.add_argument("--output", required=True, help="Parquet file to write")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", TrackingConfig().uri))
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments.model, arguments.input, arguments.output, arguments.tracking_uri))


def run(model_uri: str, input_path: str, output_path: str, tracking_uri: str) -> Summary:
    """Predict every input; returns counts and where the predictions are."""
    if not output_path.endswith(".parquet"):
        raise InputError(f"--output is {output_path}; give a file that ends in .parquet")
    with tempfile.TemporaryDirectory() as directory:
        predictor = load_predictor(absolute_place(tracking_uri), model_uri, Path(directory))
    output = Path(output_path).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    rejected: list[RejectedRow] = []
    num_rows = 0
    try:
        with pq.ParquetWriter(temporary, SCHEMA) as writer:
            for table, bad in _predictions(predictor, Path(input_path)):
                writer.write_table(table)
                rejected += bad
                num_rows += table.num_rows
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    rejected_file = output.with_name(f"{output.stem}.rejected.parquet")
    rejected_file.unlink(missing_ok=True)
    if rejected:
        pq.write_table(pa.Table.from_pylist([{"id": row.id, "reason": row.reason} for row in rejected]), rejected_file)
    text = f"{num_rows} predictions in {output}"
    if rejected:
        text += f"\n{len(rejected)} unreadable inputs in {rejected_file}, first {rejected[0].id}: {rejected[0].reason}"
    return Summary(text, {"output": str(output), "rows": num_rows, "rejected_rows": len(rejected)})


def _predictions(predictor: TargetPredictor, path: Path) -> Iterator[tuple[pa.Table, list[RejectedRow]]]:
    """Yield predictions and unreadable rows, in the order of the inputs."""
    if predictor.modality == "vector":
        ready = read_ready_embeddings("input", CorpusConfig(modality="vector", format="embeddings", path=str(path)))
        result = predictor.classify(ready.embeddings)
        yield _table([row.id for row in ready.rows], result.classes, result.probabilities), list(ready.rejected)
        return
    parts = plan_parts(list_inputs(path, predictor.modality), PART_ROWS)
    with ray_session(), tqdm(total=sum(len(part.rows) for part in parts), unit="row", file=sys.stderr) as bar:
        for batch in _classified(predictor, parts):
            ids, classes, probabilities, rejected = pickle.loads(batch["payload"])
            bar.update(len(ids) + len(rejected))
            yield _table(ids, classes, probabilities), rejected


def _classified(predictor: TargetPredictor, parts: Sequence[Part]) -> Iterator[dict[str, bytes]]:
    """Stream parts through the decode tasks of embed and through one actor that encodes and classifies."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    gpus = 1 if num_gpus() else 0
    rows = [{"part": pickle.dumps(part)} for part in parts]
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(decode_part, batch_size=1, num_cpus=0.5, fn_kwargs={"encoder": predictor.build_encoder()})
        .map_batches(
            ClassifyPart,
            batch_size=1,
            num_cpus=0.5,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(size=1),
            fn_constructor_kwargs={"predictor": predictor, "device": "cuda" if gpus else "cpu"},
        )
    )
    yield from dataset.iter_rows()


class ClassifyPart:
    """An actor that holds encoder and head; it encodes and classifies one decoded part at a time."""

    def __init__(self, predictor: TargetPredictor, device: str) -> None:
        set_encoder_threads(actors=1, device=device)
        encoder = predictor.build_encoder()
        assert encoder is not None
        encoder.load(device=device, precision=predictor.precision)
        self._predictor, self._encoder = predictor, encoder

    def __call__(self, batch: Batch) -> Batch:
        """Return ids, classes, probabilities and rejected rows of one part."""
        _, kept, decoded, rejected = pickle.loads(batch["payload"][0])
        result = self._predictor.classify(self._encoder.encode_all(decoded, batch_size=32))
        payload = pickle.dumps(([row.id for row in kept], result.classes, result.probabilities, rejected))
        return {"payload": np.array([payload], dtype=object)}


def _table(ids: Sequence[str], classes: Sequence[str], probabilities: np.ndarray) -> pa.Table:
    return pa.table({"id": list(ids), "prediction": list(classes), "probability": probabilities}, schema=SCHEMA)


if __name__ == "__main__":
    raise SystemExit(main())
