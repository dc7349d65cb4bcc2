"""Numbers that look drawn by lot and come from the ids of rows alone: whoever draws some of the rows draws the same.

Shape legend: N rows, B bytes of their ids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def lots_of(ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A number of each row (N,), from 0 to 2⁶³ − 1, that looks drawn by lot and comes from its id alone.

    It is a linear hash of the id's bytes, whose bits are then mixed as in MurmurHash3.
    """
    return np.concatenate([np.empty(0, dtype=np.int64), *(_lots_of_chunk(chunk) for chunk in ids.chunks if len(chunk))])


def _lots_of_chunk(ids: pa.Array) -> npt.NDArray[np.int64]:
    _, offsets, content = pa.concat_arrays([ids.cast(pa.large_string())]).buffers()
    ends_N = np.frombuffer(offsets, dtype=np.int64)[: len(ids) + 1]
    bytes_B = np.frombuffer(content or b"", dtype=np.uint8)[ends_N[0] : ends_N[-1]].astype(np.uint64)
    lengths_N = np.diff(ends_N)
    places_B = np.arange(len(bytes_B)) - np.repeat(ends_N[:-1] - ends_N[0], lengths_N)
    factors = np.random.default_rng(0).integers(2**64, size=int(lengths_N.max()), dtype=np.uint64)
    sums_B = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum((bytes_B + 1) * factors[places_B])])
    hashes_N = np.diff(sums_B[ends_N - ends_N[0]])
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes_N = (hashes_N ^ (hashes_N >> 33)) * np.uint64(factor)
    lots_N: npt.NDArray[np.int64] = (hashes_N >> 1).astype(np.int64)
    return lots_N
