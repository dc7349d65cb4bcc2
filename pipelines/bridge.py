"""The image encoder's own classifier as a bridge: a row of each class it was trained on, under that class's name.

In: an experiment whose encoders.image was trained to classify (timm's ImageNet models; the default). Out: two corpora
of role bridge (docs/train.md, Bridges): classifier.parquet, ready embeddings, and names.jsonl, texts about its classes.

    python -m pipelines.bridge pets.yaml --output data/imagenet

No Ray is started, and no picture is needed.
"""

from __future__ import annotations

import argparse
import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.command_line import Summary, experiment_parser, step_main
from pipelines.places import OutputFolder
from pipelines.progress import loading
from uml_core.config import Experiment


def build_parser() -> argparse.ArgumentParser:
    parser = experiment_parser("bridge")
    parser.add_argument("--output", required=True, help="folder or URI to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    return step_main(build_parser(), lambda experiment, arguments: run(experiment, arguments.output), argv)


def run(experiment: Experiment, output: str) -> Summary:
    """Write the classifier's rows and names. Raises InputError where the encoder has no classifier with names."""
    with loading():
        from uml_core.encoders import build_encoder  # torch takes seconds, and bad flags should not
        from uml_core.encoders.image.classifier_rows import classifier_rows

    found = classifier_rows(build_encoder(experiment.encoders.image, "image"))
    folder, (num_classes, dim) = OutputFolder("--output", output), found.embeddings.shape
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(found.embeddings.ravel()), dim)
    table = pa.BufferOutputStream()
    pq.write_table(pa.table({"label": found.names, "embedding": embeddings}), table)
    folder.write("classifier.parquet", table.getvalue().to_pybytes())
    lines = [
        json.dumps({"label": name, "text": synonyms}, ensure_ascii=False) + "\n"
        for name, synonyms in zip(found.names, found.synonyms, strict=True)
    ]
    folder.write("names.jsonl", "".join(lines).encode())
    results = {"output": folder.place, "classes": num_classes, "dim": dim}
    return Summary(f"{num_classes} classes, {dim} wide: classifier.parquet and names.jsonl in {folder.place}", results)


if __name__ == "__main__":
    raise SystemExit(main())
