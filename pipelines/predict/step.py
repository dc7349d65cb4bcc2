"""Target-only batch inference (Ray Data).

In: a logged model and a folder of new files (or a table of sentences or paths). Out: one Parquet file with columns id
(path relative to the input), prediction and probability, with --top also the next classes; unreadable inputs go to
FILE.rejected.parquet with their reason, and more than --max-rejected of them end the step with status 2.

    python -m pipelines.predict --model runs:/RUN_ID/model --input FOLDER --output predictions.parquet
    python -m pipelines.predict --model models:/pets@best --input new.csv --root photos --top 5 --output out.parquet

No experiment file and no auxiliary corpus are needed. The tracking URI is --tracking-uri, else $MLFLOW_TRACKING_URI,
else the experiment file's default.
"""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from pipelines.command_line import Summary, absolute_path
from pipelines.embed.stages import (
    Batch,
    EncoderSettings,
    ReadPart,
    Workers,
    decoded_part,
    set_encoder_threads,
    stream_parts,
)
from pipelines.predict.flags import MAX_REJECTED, check_output, count_of, share_of
from pipelines.ray_session import ray_session
from pipelines.timings import timed
from uml_core.config import EmbedConfig
from uml_core.corpora.readers.inputs import stream_inputs
from uml_core.corpora.rows import Row
from uml_core.encoders import build_encoder
from uml_core.errors import InputError
from uml_core.serving.predictor import Predictions, Predictor
from uml_core.tracking.reading import load_predictor

PART_ROWS, BATCH_SIZE = 256, 32
WINDOW_PARTS = 256  # listed at a time: neither the driver nor the object store holds all the inputs' places
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("prediction", pa.string()), ("probability", pa.float64())])
TOP_SCHEMA = pa.schema([("top_predictions", pa.list_(pa.string())), ("top_probabilities", pa.list_(pa.float64()))])


def run(
    model_uri: str,
    input_path: str,
    output_path: str,
    tracking_uri: str,
    *,
    root: str | None = None,
    max_rejected: float | str = MAX_REJECTED,
    top: int | str | None = None,
) -> Summary:
    """Predict every input; returns counts and where the predictions are.

    Args:
        model_uri: runs:/..., models:/... or a local folder.
        input_path: a folder, a table, or shards.
        output_path: the Parquet file to write.
        tracking_uri: MLflow's.
        root: the folder that a table's paths start in.
        max_rejected: share of the inputs that may be unreadable, as `embed.max_rejected`.
        top: how many classes a row has in the columns `top_*`, 0 or "all" for all; None: there are no such columns.

    Raises:
        InputError: nothing can be predicted, or too many inputs are unreadable; what could be predicted is written.
    """
    check_output(output_path)
    max_share, max_classes = share_of(max_rejected), None if top is None else count_of(top)
    with timed("read"), tempfile.TemporaryDirectory() as directory:
        predictor = load_predictor(absolute_path(tracking_uri), model_uri, Path(directory))
    places = absolute_path(input_path), None if root is None else absolute_path(root)
    output = Path(absolute_path(output_path))
    output.parent.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA if max_classes is None else pa.unify_schemas([SCHEMA, TOP_SCHEMA])
    with (
        timed("encode"),
        ParquetFile(output, schema) as predictions,
        ParquetFile(output.with_name(f"{output.stem}.rejected.parquet"), REJECTED_SCHEMA, keep_empty=False) as rejected,
    ):
        for ids, result, bad in _predictions(predictor, *places):
            predictions.write(_table(ids, result, schema, predictor.classes, max_classes or len(predictor.classes)))
            if bad:
                rows = [{"id": row.id, "reason": reason} for row, reason in bad]
                rejected.write(pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA))
    text = f"{predictions.num_rows} predictions in {output}"
    if rejected.num_rows:
        first = pq.read_table(rejected.path).slice(0, 1).to_pylist()[0]
        found = f"unreadable inputs in {rejected.path}, first {first['id']}: {first['reason']}"
        text += f"\n{rejected.num_rows} {found}"
        total = rejected.num_rows + predictions.num_rows
        if not predictions.num_rows or rejected.num_rows > max_share * total:
            raise InputError(
                f"{rejected.num_rows} of {total} {found} (--max-rejected is {max_share:.0%}); mend them, or raise "
                f"the limit; {predictions.num_rows} predictions are in {output}"
            )
    results = {"output": str(output), "rows": predictions.num_rows, "rejected_rows": rejected.num_rows}
    return Summary(text, results)


class ParquetFile:
    """A Parquet file written table by table and renamed into place at the end.

    After an error, what was there before is still there. Without `keep_empty`, no rows leave no file.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, keep_empty: bool = True) -> None:
        self.path, self.num_rows, self._keep_empty = path, 0, keep_empty
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._writer = pq.ParquetWriter(self._temporary, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)
        self.num_rows += table.num_rows

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if kind is None and (self.num_rows or self._keep_empty):
            self._temporary.replace(self.path)
            return
        self._temporary.unlink(missing_ok=True)
        if kind is None:
            self.path.unlink(missing_ok=True)


Rejected = list[tuple[Row, str]]


def _predictions(
    predictor: Predictor, path: str, root: str | None
) -> Iterator[tuple[list[str], Predictions, Rejected]]:
    """Yield ids, predictions and unreadable rows with their reasons, in the order of the inputs."""
    encoder = predictor.build_encoder()
    if encoder is None:
        if root is not None:
            raise InputError(f"--root is {root}, and the model takes ready inputs, which have no paths; remove it")
        for chunk, result in predictor.ready_inputs(path):
            rejected = [(row, row.fault or "") for row in chunk.rejected]
            yield [row.id for row in chunk.rows], result, rejected
        return
    windows = batched(batched(stream_inputs(path, predictor.modality, root=root), PART_ROWS), WINDOW_PARTS)
    window = next(windows, None)  # an input that cannot be used is told here, before Ray starts
    with ray_session(), tqdm(unit="row", file=sys.stderr) as bar:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        while window is not None:
            parts = [pickle.dumps(rows) for rows in window]
            bar.total = (bar.total or 0) + sum(map(len, window))  # what is listed so far
            workers = Workers.from_settings(EmbedConfig(), num_parts=len(parts))
            for batch in stream_parts(
                parts,
                ClassifyPart,
                workers,
                encoder=encoder,
                read=pickle.loads,
                arguments={"predictor": predictor},
            ):
                ids, result, rejected = pickle.loads(batch["payload"])
                bar.update(len(ids) + len(rejected))
                yield ids, result, rejected
            window = next(windows, None)


Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter (itertools.batched, which Python 3.11 lacks)."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class ClassifyPart:
    """An actor that holds encoder and head; it encodes and classifies one part at a time."""

    def __init__(self, encoder: EncoderSettings, read: ReadPart, workers: Workers, *, predictor: Predictor) -> None:
        set_encoder_threads(workers)
        loaded = build_encoder(*encoder)
        predictor.load_encoder(loaded, device=workers.device)
        self._predictor, self._encoder, self._read = predictor, loaded, read

    def __call__(self, batch: Batch) -> Batch:
        part = decoded_part(batch, self._encoder, self._read)
        result = self._predictor.classify_decoded(self._encoder, part.decoded, batch_size=BATCH_SIZE)
        payload = pickle.dumps(([row.id for row in part.rows], result, part.rejected))
        return {"payload": np.array([payload], dtype=object)}


def _table(ids: Sequence[str], result: Predictions, schema: pa.Schema, classes: Sequence[str], top: int) -> pa.Table:
    columns = {"id": list(ids), "prediction": result.classes, "probability": result.probabilities}
    if "top_predictions" in schema.names:
        codes_BK, probabilities_BK = result.ranked(top)
        columns["top_predictions"] = [[classes[code] for code in codes] for codes in codes_BK]
        columns["top_probabilities"] = list(probabilities_BK)
    return pa.table(columns, schema=schema)
