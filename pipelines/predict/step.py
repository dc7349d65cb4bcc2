"""Target-only batch inference: in this process for few inputs, else on Ray Data.

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
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.command_line import Summary
from pipelines.embed.decoding import HERE_ROWS, is_elsewhere
from pipelines.places import absolute_path, check_no_password, opened
from pipelines.predict.flags import MAX_REJECTED, count_of, output_place, share_of
from pipelines.predict.here import Predicted, predictions_here
from pipelines.progress import stage
from uml_core.corpora.readers.inputs import stream_inputs
from uml_core.errors import InputError
from uml_core.files.outages import named
from uml_core.serving.predictor import Predictions, Predictor
from uml_core.tracking.reading import load_predictor

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
    output = output_place(output_path)
    max_share, max_classes = share_of(max_rejected), None if top is None else count_of(top)
    with stage("read", "reading the model"), tempfile.TemporaryDirectory() as directory:
        predictor = load_predictor(absolute_path(tracking_uri), model_uri, Path(directory))
    places = absolute_path(input_path), None if root is None else absolute_path(root)
    for flag, place in zip(("--input", "--root"), places, strict=True):
        check_no_password(flag, place or "")
    schema = SCHEMA if max_classes is None else pa.unify_schemas([SCHEMA, TOP_SCHEMA])
    with (
        stage("encode", "loading the encoder"),
        named(output),
        ParquetFile(output, schema) as predictions,
        ParquetFile(rejected_place(output), REJECTED_SCHEMA, keep_empty=False) as rejected,
    ):
        for ids, result, bad in _predictions(predictor, *places):
            predictions.write(_table(ids, result, schema, predictor.classes, max_classes or len(predictor.classes)))
            if bad:
                rows = [{"id": row.id, "reason": reason} for row, reason in bad]
                rejected.write(pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA))
    text = f"{predictions.num_rows} predictions in {output}"
    if rejected.num_rows:
        first = rejected.first
        found = f"unreadable inputs in {rejected.place}, first {first['id']}: {first['reason']}"
        text += f"\n{rejected.num_rows} {found}"
        total = rejected.num_rows + predictions.num_rows
        if not predictions.num_rows or rejected.num_rows > max_share * total:
            raise InputError(
                f"{rejected.num_rows} of {total} {found} (--max-rejected is {max_share:.0%}); mend them, or raise "
                f"the limit; {predictions.num_rows} predictions are in {output}"
            )
    results = {"output": output, "rows": predictions.num_rows, "rejected_rows": rejected.num_rows}
    return Summary(text, results)


def rejected_place(output: str) -> str:
    """Where the unreadable inputs of predictions are listed: beside them."""
    base, mark, query = output.partition("?")
    return f"{base.removesuffix('.parquet')}.rejected.parquet{mark}{query}"


class ParquetFile:
    """A Parquet file, local or a URI, written table by table and renamed into place at the end.

    After an error, what was there before is still there. Without `keep_empty`, no rows leave no file.
    """

    def __init__(self, place: str, schema: pa.Schema, *, keep_empty: bool = True) -> None:
        self.place, self.num_rows, self._keep_empty = place, 0, keep_empty
        self.first: dict[str, Any] = {}
        self._fs, self._path = opened("--output", place)
        folder, _, name = self._path.rpartition("/")
        self._fs.create_dir(folder, recursive=True)
        begun = f".{name}.{socket.gethostname()}."
        if isinstance(self._fs, pafs.LocalFileSystem):  # elsewhere an upload that was broken off leaves no file
            _drop_killed(Path(folder), begun)
        self._temporary = f"{folder}/{begun}{os.getpid()}"
        self._writer = pq.ParquetWriter(self._temporary, schema, filesystem=self._fs)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)
        if not self.num_rows and len(table):
            self.first = table.slice(0, 1).to_pylist()[0]
        self.num_rows += len(table)

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._writer.close()
        except OSError:
            self._fs.delete_file(self._temporary)
            raise
        if kind is None and (self.num_rows or self._keep_empty):
            self._fs.move(self._temporary, self._path)
            return
        self._fs.delete_file(self._temporary)
        if kind is None and self._fs.get_file_info(self._path).type == pafs.FileType.File:
            self._fs.delete_file(self._path)


def _drop_killed(folder: Path, begun: str) -> None:
    """Delete files that processes of this host have begun, which were killed then."""
    for file in folder.iterdir():
        process = file.name.removeprefix(begun)
        if file.name.startswith(begun) and process.isdigit() and not psutil.pid_exists(int(process)):
            file.unlink(missing_ok=True)


def _predictions(predictor: Predictor, path: str, root: str | None) -> Iterator[Predicted]:
    """Yield ids, predictions and unreadable rows with their reasons, in the order of the inputs."""
    encoder = predictor.build_encoder()
    if encoder is None:
        if root is not None:
            raise InputError(f"--root is {root}, and the model takes ready inputs, which have no paths; remove it")
        for chunk, result in predictor.ready_inputs(path):
            rejected = [(row, row.fault or "") for row in chunk.rejected]
            yield [row.id for row in chunk.rows], result, rejected
        return
    rows = stream_inputs(path, predictor.modality, root=root)
    first = list(itertools.islice(rows, HERE_ROWS + 1))  # an input that cannot be used is told here, before Ray starts
    if len(first) <= HERE_ROWS and not is_elsewhere():
        yield from predictions_here(predictor, encoder, first)
        return
    from pipelines.predict.on_ray import predictions_on_ray  # two seconds of imports that few inputs do without

    yield from predictions_on_ray(predictor, encoder, itertools.chain(first, rows))


def _table(ids: Sequence[str], result: Predictions, schema: pa.Schema, classes: Sequence[str], top: int) -> pa.Table:
    columns = {"id": list(ids), "prediction": result.classes, "probability": result.probabilities}
    if "top_predictions" in schema.names:
        codes_BK, probabilities_BK = result.ranked(top)
        columns["top_predictions"] = [[classes[code] for code in codes] for codes in codes_BK]
        columns["top_probabilities"] = list(probabilities_BK)
    return pa.table(columns, schema=schema)
