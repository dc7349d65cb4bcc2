"""A large corpus in slices: each is listed by a task of its own, whose parts go to the encoders while it still lists.

In: a corpus of many shards, tables or folders. Out: its store, one folder a slice under one manifest
(`uml_core.store.sliced_store`). Listing is a stage of the same Ray Data stream as decoding and encoding, so that Ray
holds it to a few parts ahead, whatever the corpus's size: nothing is spooled, and the driver keeps a line a slice.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data

from pipelines.embed import stages
from pipelines.embed.encode_part import EncodePart
from pipelines.embed.facts import EmbedProgress, facts_of
from pipelines.embed.workers import ENCODE_CPUS, Workers
from pipelines.progress import StepProgress
from pipelines.ray_session import quieten_ray_data
from uml_core.config import Experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.readers.base import CorpusSource, RowChecks, Slice
from uml_core.corpora.readers.slices import files_digest, files_in_groups
from uml_core.corpora.rows import Row, hashes_of
from uml_core.encoders import build_encoder, store_precision
from uml_core.errors import InputError
from uml_core.store.listing import Listing
from uml_core.store.sliced_store import (
    RANGES,
    Listed,
    SlicedStore,
    SliceStore,
    lists_slices,
    repeated_id,
)

PART_ROWS = 4096  # where embed.part_rows is auto: 600 MB of decoded pictures, 12 MB of embeddings
LIST_CPUS = 0.48  # unlike those of the other stages, which Ray Data would fuse with this one
FEW_ROWS = 100_000  # before so many the share of unreadable rows is not judged: the total is known in the end


@dataclass(frozen=True)
class SlicedCorpus:
    """What the tasks of one run need to know of a corpus."""

    experiment: Experiment
    corpus: str
    store: tuple[str, str, str]  # URI, corpus, fingerprint
    count: int
    run: str
    part_rows: int
    in_groups: frozenset[str]

    def slice_store(self, index: int) -> SliceStore:
        return SlicedStore(*self.store).slice(index)

    def rows(self, index: int, checks: RowChecks | None = None) -> Iterator[Row]:
        return rows_of(self.experiment, self.corpus, Slice(index, self.count, self.in_groups), checks)

    def list_parts(self, batch: stages.Batch) -> Iterator[stages.Batch]:
        """List one slice, in a task; yields a part of missing rows at a time (a Ray Data batch of one row each)."""
        index = int(batch["slice"][0])
        store, checks = self.slice_store(index), RowChecks()
        listing = Listing(self.rows(index, checks), store.begin(self.run), self.part_rows)
        for rows in listing.missing:
            lines = [f"{self.name_of(index)}/", *(json.dumps(row.as_json()) for row in rows)]
            yield {"part": np.array(["\n".join(lines)], dtype=object)}
        store.leave(self.run, Listed(listing.keys, checks.ids, listing.missing_ids, listing.has_files))

    def settle(self, index: int) -> dict[str, Any]:
        return self.slice_store(index).settle_listed(self.run, self.part_rows)

    def name_of(self, index: int) -> str:
        return f"{self.corpus}/slice-{index:04d}"


def part_rows_of(experiment: Experiment, corpus: str) -> int:
    """Rows in a part: PART_ROWS, but fewer where a row is large, of sounds (0.6 MB decoded) and sequences of tokens."""
    encoder = build_encoder(experiment.encoder_of(corpus), experiment.corpora[corpus].modality)
    few = encoder.yields_tokens or encoder.modality == "audio"
    auto = encoder.part_rows if few else PART_ROWS
    return auto if experiment.embed.part_rows == "auto" else experiment.embed.part_rows


def rows_of_part(part: str) -> Sequence[Row]:
    """The rows of a part as `SlicedCorpus.list_parts` writes it."""
    return [Row.from_json(json.loads(line)) for line in part.split("\n")[1:]]


def embed_sliced(
    experiment: Experiment, corpus: str, store: SlicedStore, count: int, shown: StepProgress
) -> dict[str, Any]:
    """Bring a corpus of many slices up to date in its store; Ray is running. Returns the summary's facts.

    Raises:
        InputError: two slices list the same id, or too many rows are unreadable; what is embedded stays.
    """
    waiting = f"corpus {corpus} is being embedded by another run into {store.directory}; waiting for it"
    with store.writing(lambda: print(waiting, file=sys.stderr)):
        store.begin_slices(count)
        source = CorpusSource(corpus, experiment.corpora[corpus])
        files, in_groups = files_digest(source), files_in_groups(source)  # before they are read
        place, part_rows = (store.uri, store.corpus, store.fingerprint), part_rows_of(experiment, corpus)
        sliced = SlicedCorpus(experiment, corpus, place, count, uuid.uuid4().hex, part_rows, in_groups)
        progress = EmbedProgress(corpus, FEW_ROWS, experiment.embed.max_rejected)
        _encode(sliced, progress, shown)
        shown.says(f"settling {count} slices of {corpus}")
        refuse_repeated_ids(sliced)
        settle = ray.remote(num_cpus=LIST_CPUS)(lambda index: sliced.settle(index))
        slices = ray.get([settle.remote(index) for index in range(count)])
        rejected = sum(each["rejected_rows"] for each in slices)
        progress.total = rejected + sum(each["rows"] for each in slices)
        if not progress.total:
            raise InputError(f"corpora.{corpus} is empty: no rows found in {experiment.corpora[corpus].path}")
        progress.check(rejected, f"in {store.directory}/slice-*/rejected.parquet")
        files = None if any(each["has_files"] for each in slices) else files
        manifest = store.read_manifest()
        up_to_date = manifest is not None and lists_slices(manifest, slices)
        if manifest is None or not up_to_date:
            store.leave_unlogged()
            manifest = store.publish_slices(slices, {**_facts(sliced, slices, progress), "files": files})
        else:
            store.note_files(manifest, files)
        drop = ray.remote(num_cpus=LIST_CPUS)(lambda index: sliced.slice_store(index).drop_settled())
        ray.get([drop.remote(index) for index, each in enumerate(slices) if each["run"] == sliced.run])
        return facts_of(manifest, up_to_date=up_to_date)


def refuse_repeated_ids(sliced: SlicedCorpus) -> None:
    """Find ids that two slices list, by tasks over ranges of hashes. Raises InputError, which names one of them.

    Within a slice a repeated id is a fault of its row, as in a corpus that is not split.
    """
    stores = [sliced.slice_store(index) for index in range(sliced.count)]
    find = ray.remote(num_cpus=LIST_CPUS)(lambda part: repeated_id(stores, sliced.run, part))
    found = next((each for each in ray.get([find.remote(part) for part in range(RANGES)]) if each), None)
    if found is not None:
        first, _, repeated = found
        row_id = next(row.id for row in sliced.rows(first) if hashes_of([row.id])[0] == repeated)
        raise InputError(
            f"corpora.{sliced.corpus}: id '{row_id}' occurs again in another shard, table or folder; ids are unique in "
            "a corpus: rename it, or set embed.slices=1 and another store (a repeated row is then left out)"
        )


def _encode(sliced: SlicedCorpus, progress: EmbedProgress, shown: StepProgress) -> None:
    shown.counts(f"encoding {sliced.corpus}, still listing", None)
    done = 0
    for part in _stream(sliced):
        done += int(part["rows"])
        progress.total = max(FEW_ROWS, done)
        progress.add(part)
        shown.adds(int(part["rows"]))


def _stream(sliced: SlicedCorpus) -> Iterator[Mapping[str, Any]]:
    """What the actors say of every part of all slices."""
    quieten_ray_data()
    experiment, names = sliced.experiment, [sliced.name_of(index) for index in range(sliced.count)]
    encoder = build_encoder(experiment.encoder_of(sliced.corpus), experiment.corpora[sliced.corpus].modality)
    workers = Workers.from_settings(experiment.embed, num_parts=sliced.count, cluster=experiment.cluster)
    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 1  # so that each part is a block, at once
    try:
        slices = ray.data.from_items(
            [{"slice": index} for index in range(sliced.count)], override_num_blocks=sliced.count
        )
        parts = slices.map_batches(sliced.list_parts, batch_size=1, num_cpus=LIST_CPUS)
        yield from stages.stream_dataset(
            parts,
            EncodePart,
            # Room for tasks that list beside them; half a CPU each would be twice as many actors as cores, so no more.
            replace(workers, cpus=ENCODE_CPUS, most=workers.most if workers.device == "cuda" else None),
            encoder=dict.fromkeys(names, (encoder.config, encoder.modality)),
            read=rows_of_part,
            arguments={
                "stores": {name: (*sliced.store[:2], f"{sliced.store[2]}/{name.rpartition('/')[2]}") for name in names},
                "settings": experiment.embed,
                "precision": store_precision(experiment),
                "experiment": experiment.name,
            },
        )
    finally:
        context.target_max_block_size = before


def _facts(sliced: SlicedCorpus, slices: Sequence[Mapping[str, Any]], progress: EmbedProgress) -> dict[str, Any]:
    experiment = sliced.experiment
    encoder = build_encoder(experiment.encoder_of(sliced.corpus), experiment.corpora[sliced.corpus].modality)
    ours = [each for each in slices if each["run"] == sliced.run]
    return {
        "encoder": encoder.identity(),
        "dim": encoder.dim,
        "dtype": experiment.embed.dtype,
        "tokens": encoder.yields_tokens,
        "vocabulary": encoder.vocabulary,
        "precision": store_precision(experiment),
        **progress.facts(),
        **{name: sum(each[name] for each in ours) for name in ("new", "changed", "removed")},
    }
