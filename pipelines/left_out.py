"""What of its data a run leaves out: what MLflow is told, for the report to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.stores import corpus_stores
from uml_core.config import Experiment
from uml_core.tracking.records import LEFT_OUT_TAG

MAX_TAG = 5000  # characters that MLflow's servers take


def left_out_tag(experiment: Experiment, fingerprints: Mapping[str, str], warnings: Sequence[str]) -> dict[str, str]:
    """MLflow's tag of what takes no part, a line each: rows that `embed` rejected, and the warnings of a run's data."""
    stores = corpus_stores(experiment, fingerprints)
    rejected = {corpus: store.finished_manifest()["rejected_rows"] for corpus, store in stores.items()}
    lines = [
        f"{corpus}: {count} rows could not be read and were left out; rejected.parquet of the store says why"
        for corpus, count in rejected.items()
        if count
    ]
    text = "\n".join([*lines, *warnings])[:MAX_TAG]
    return {LEFT_OUT_TAG: text} if text else {}
