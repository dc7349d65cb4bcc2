"""What evaluation alone may know of a corpus: the raw rows behind embeddings, and true pairs. Training sees neither.

In: a corpus's ids in the order of its table, its raw rows where they are still readable, and a user's table of ids that
belong together (one column a corpus, one pair a row). Out: what to show of a row; row numbers, pair by pair.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from uml_core.config import Experiment
from uml_core.corpora.readers import rows_of
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, RowError, listing, nearest

logger = logging.getLogger(__name__)

PAIR_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
}
THUMBNAIL_PX = 96
SOUND_HZ, SOUND_S, SOUND_WINDOW = 16_000, 5.0, 512


@dataclass(frozen=True)
class RawRows:
    """Ids (N) in the table's order, the modality, and the raw row of each id where the corpus can still be read."""

    modality: str
    ids: tuple[str, ...]
    rows: dict[str, Row]

    def show(self, table_row: int) -> str | npt.NDArray[np.uint8]:
        """A row as a thumbnail (h, w, 3; of a sound its spectrogram) or a sentence; its id where it has none."""
        row_id = self.ids[table_row]
        row = self.rows.get(row_id)
        if row is None or self.modality not in ("image", "text", "audio"):
            return row_id
        try:
            content = row.read()
            return content if isinstance(content, str) else _shown(content, self.modality)
        except (RowError, UnidentifiedImageError, OSError) as error:
            logger.warning("row %s cannot be shown: %s", row_id, error)
            return row_id

    def words(self, table_rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64] | None:
        """The words of each sentence (N,), split at white space; None where the corpus has no sentences."""
        texts = [row.text if (row := self.rows.get(self.ids[index])) is not None else None for index in table_rows]
        if self.modality != "text" or any(text is None for text in texts):
            return None
        return np.array([len((text or "").split()) for text in texts], dtype=np.float64)


def words_per_row(experiment: Experiment) -> dict[str, float]:
    """The mean words of a sentence of each auxiliary text corpus that can still be read.

    Words are what white space separates: a script without spaces counts a sentence as one word.
    """
    found = {}
    for corpus in experiment.auxiliaries:
        config = experiment.corpora[corpus]
        if config.modality == "text" and config.format != "embeddings":
            with contextlib.suppress(InputError):  # embedded once, and gone since
                counts = [len(row.text.split()) for row in rows_of(experiment, corpus) if row.text is not None]
                if counts:
                    found[corpus] = float(np.mean(counts))
    return found


def _shown(content: bytes, modality: str) -> str | npt.NDArray[np.uint8]:
    if modality == "text":
        return content.decode("utf-8", errors="replace")
    if modality == "audio":
        return spectrogram(content)
    with Image.open(io.BytesIO(content)) as picture:
        small = picture.convert("RGBA")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        page = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), "white")
        page.paste(small, ((THUMBNAIL_PX - small.width) // 2, (THUMBNAIL_PX - small.height) // 2), small)
        return np.asarray(page)


def spectrogram(sound: bytes) -> npt.NDArray[np.uint8]:
    """The first seconds of a sound file as a picture (h, w, 3): time to the right, 0 to 8 kHz upwards, 60 dB deep.

    Raises RowError where the file cannot be read.
    """
    import scipy.signal  # this and resampling take a second each to import

    from uml_core.encoders.audio.packaged_audio import decode_audio

    samples = decode_audio(sound, sample_rate=SOUND_HZ, max_seconds=SOUND_S, min_samples=SOUND_WINDOW)
    _, _, power = scipy.signal.spectrogram(samples, nperseg=SOUND_WINDOW)
    depth_db = 10 * np.log10(power / power.max() + 1e-6)
    colours = matplotlib.colormaps["magma"](1 + depth_db[::-1] / 60, bytes=True)[..., :3]
    return np.asarray(Image.fromarray(colours).resize((2 * THUMBNAIL_PX, THUMBNAIL_PX)))


def read_pairs(file: str, ids: Mapping[str, Sequence[str]], *, target: str) -> dict[str, npt.NDArray[np.int64]]:
    """Each corpus's table rows (P,), pair by pair.

    Args:
        file: .csv, .jsonl or .parquet with the column of the target and at least one other corpus; values are ids.
        ids: every corpus's ids in the order of its table.
        target: the target corpus.

    Raises:
        InputError: the file is missing or unreadable, a column is no corpus, or an id is unknown.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--pairs is {file}, which does not exist; give a table of ids, one column a corpus")
    if path.suffix not in PAIR_READERS:
        raise InputError(f"--pairs is {file}; a table of pairs ends in {listing(PAIR_READERS)}")
    try:
        table = PAIR_READERS[path.suffix](path)
    except (ValueError, OSError) as error:
        raise InputError(f"--pairs {file} cannot be read: {' '.join(str(error).split())[:200]}") from None
    columns = [str(column) for column in table.columns]
    unknown = [column for column in columns if column not in ids]
    if unknown or target not in columns or len(columns) < 2:
        hint = nearest(unknown[0], ids) if unknown else ""
        raise InputError(
            f"--pairs {file} has columns {listing(columns)}; expected the target '{target}' and at least one other "
            f"corpus of {listing(ids)}{hint}"
        )
    return {column: _rows(file, column, table[column], ids[column]) for column in columns}


def _rows(file: str, corpus: str, values: Any, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    given = pd.Index([str(value) for value in values])  # astype keeps what is missing
    found: npt.NDArray[np.int64] = pd.Index(ids).get_indexer(given)
    missing = given[found < 0].tolist()
    if missing:
        raise InputError(
            f"--pairs {file}: {len(missing)} ids are not in the store of corpus {corpus}, first '{missing[0]}'"
            f"{nearest(missing[0], list(ids)[:1000])}; its ids look like '{ids[0]}'"
        )
    return found
