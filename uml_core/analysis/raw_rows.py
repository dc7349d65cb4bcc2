"""The raw rows behind embeddings, for pictures of what excites a unit. Evaluation only: training never sees them.

In: a corpus's ids in the order of its table, and its raw rows where they are still readable. Out: what to show.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from uml_core.config import Experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, RowError

logger = logging.getLogger(__name__)

THUMBNAIL_PX = 96


@dataclass(frozen=True)
class RawRows:
    """Ids (N) in the table's order, the modality, and the raw row of each id where the corpus can still be read."""

    modality: str
    ids: tuple[str, ...]
    rows: dict[str, Row]

    def show(self, table_row: int) -> str | npt.NDArray[np.uint8]:
        """Return a row as a thumbnail (h, w, 3) or a sentence; its id where it is neither, or not readable."""
        row_id = self.ids[table_row]
        row = self.rows.get(row_id)
        if row is None or self.modality not in ("image", "text"):
            return row_id
        try:
            content = row.read()
            return content if isinstance(content, str) else _shown(content, self.modality)
        except (RowError, UnidentifiedImageError, OSError) as error:
            logger.warning("row %s cannot be shown: %s", row_id, error)
            return row_id

    def words(self, table_rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64] | None:
        """Return the words of each sentence (N,), split at white space; None where the corpus has no sentences."""
        texts = [row.text if (row := self.rows.get(self.ids[index])) is not None else None for index in table_rows]
        if self.modality != "text" or any(text is None for text in texts):
            return None
        return np.array([len((text or "").split()) for text in texts], dtype=np.float64)


def words_per_row(experiment: Experiment) -> dict[str, float]:
    """Return the mean words of a row of each auxiliary text corpus that can still be read."""
    found = {}
    for corpus in experiment.auxiliaries:
        config = experiment.corpora[corpus]
        if config.modality == "text" and config.format != "embeddings":
            try:
                words = mean_words(rows_of(experiment, corpus))
            except InputError:
                continue  # embedded once, and gone since
            if words is not None:
                found[corpus] = words
    return found


def mean_words(rows: Iterable[Row]) -> float | None:
    """Return the mean number of words of the sentences among some rows; None where there are none.

    Words are what white space separates: a script without spaces counts a sentence as one word.
    """
    counts = [len(row.text.split()) for row in rows if row.text is not None]
    return float(np.mean(counts)) if counts else None


def _shown(content: bytes, modality: str) -> str | npt.NDArray[np.uint8]:
    if modality == "text":
        return content.decode("utf-8", errors="replace")
    with Image.open(io.BytesIO(content)) as picture:
        small = picture.convert("RGBA")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        page = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), "white")
        page.paste(small, ((THUMBNAIL_PX - small.width) // 2, (THUMBNAIL_PX - small.height) // 2), small)
        return np.asarray(page)
