"""Auxiliary sentences whose encoder is trained as well: token ids of the rows that come next, embeddings anew.

In: the raw rows of an auxiliary corpus's table and its text encoder. Out: padded token ids (2, B, T) in the order in
which a frozen encoder's embeddings would come.

Shape legend: B batch, N rows, T tokens, D embedding width; a leading 2 is ids and mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from uml_core.config import Experiment
from uml_core.corpora.rows import Row
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.subsets import Rows
from uml_core.encoders import build_encoder
from uml_core.encoders.base import Decoded
from uml_core.encoders.text.sentence_encoders import TransformersTextEncoder
from uml_core.errors import InputError, RowError
from uml_core.feed.mixing import SampleStream

ENCODE_ROWS = 64  # sentences encoded at once for an analysis


class TrainedText:
    """One auxiliary corpus: its encoder, and the samples of its endless stream as token ids."""

    def __init__(self, experiment: Experiment, corpus: str, rows: LabelledRows, raw: Sequence[Row]) -> None:
        self.encoder = text_encoder(experiment, corpus)
        self._rows, self._raw = rows, raw
        self._stream = SampleStream(corpus, len(rows), experiment.seed)
        self._tokens: dict[int, Decoded] = {}

    def samples(self, start: int, stop: int, share: slice) -> tuple[Tensor, Tensor]:
        """Token ids (2, B, T) and labels (B,) of a share of the samples at [start, stop) of the stream."""
        positions = self._stream.rows(start, stop)[share]
        if not len(positions):  # more ranks than samples: this one takes part with none
            return torch.zeros(2, 0, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        return self._padded(self._rows.rows[positions]), torch.from_numpy(self._rows.labels[positions])

    @torch.inference_mode()
    def embedded(self, labelled: LabelledRows) -> LabelledRows:
        """Rows of the corpus with the embeddings (N, D) of the encoder as it is; its mode is the caller's."""
        table_ND = labelled.embeddings.copy()
        for start in range(0, len(labelled), ENCODE_ROWS):
            rows = labelled.rows[start : start + ENCODE_ROWS]
            table_ND[rows] = self.encoder.encode([self._decoded(int(row)) for row in rows])
        return replace(labelled, embeddings=table_ND)

    def _padded(self, rows: Rows) -> Tensor:
        return self.encoder.padded([self._decoded(int(row)) for row in rows])

    def _decoded(self, row: int) -> Decoded:
        if row not in self._tokens:
            try:
                self._tokens[row] = self.encoder.decode(self._raw[row].read())
            except RowError as error:
                raise InputError(
                    f"sentence {self._raw[row].id} was embedded and can no longer be read ({error}); run python -m "
                    "pipelines.embed again"
                ) from None
        return self._tokens[row]


def text_encoder(experiment: Experiment, corpus: str) -> TransformersTextEncoder:
    """A text corpus's encoder without weights, never compiled: it is trained."""
    config = experiment.encoder_of(corpus)
    assert config is not None, "refused with the experiment"
    encoder = build_encoder(config.model_copy(update={"compile": False}), "text")
    if not isinstance(encoder, TransformersTextEncoder):
        raise InputError(
            f"model.trained_auxiliaries names {corpus}, whose encoder '{config.name}' has nothing to train; "
            "leave it out, or take a text encoder of source transformers"
        )
    return encoder
