"""The target's pictures or clips, for training its encoder: decoded, kept in memory or decoded for every use.

In: raw rows in the order of the target's table, and the encoder that decodes them. Out: arrays by row number of that
table, so that splits, shots and labels are those of `TrainingData`: uint8 pictures (B, H, W, 3), or clips as their
encoder packs them. What is said of pictures below holds of clips.

Crops and flips are drawn from (seed, step) for the whole batch over all ranks, and a rank uses its own: how many ranks
there are changes nothing, nor does a resume. A crop is enlarged back to the picture's size, which is never smaller, so
bilinear reads suffice.

Shape legend: B batch, H height, W width.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from uml_core.config import Experiment
from uml_core.corpora.rows import Row
from uml_core.data.subsets import Rows
from uml_core.data.training_data import TrainingData
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder
from uml_core.errors import InputError, RowError
from uml_core.feed.mixing import MixingPlan, Part, SampleStream, rank_share

GIB = 2**30
BATCHES_AHEAD = 4  # decoded while earlier ones train
ASPECTS = (3 / 4, 4 / 3)  # of a crop, width over height, before it is cut to the picture

Shares = npt.NDArray[np.float64]
TrainPictures = Callable[[Rows], Arrays]  # pictures (B, H, W, 3) of the rows that come next, in training's order
# From the steps' rows, in order, to what delivers their pictures: how pictures that are not kept are read ahead.
OpenStream = Callable[[Iterator[Rows], Sequence[Row], TrainableEncoder], TrainPictures]


@dataclass(frozen=True, kw_only=True)
class PictureData(TrainingData):
    """Training data whose target is read as pictures or clips: the raw row of every row of the target's table."""

    raw: tuple[Row, ...]
    keep: bool
    picture_bytes: int
    noun: str = "picture"
    open_stream: OpenStream | None = None  # None: pictures that are not kept are decoded when they are asked for
    sentences: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)  # of corpora whose text encoder is trained
    kept: dict[int, Arrays] = field(default_factory=dict)  # decoded before, by row: runs of one process may share them

    @property
    def gib(self) -> float:
        return self.picture_bytes * (len(self.train[self.target]) + len(self.val)) / GIB

    def describe(self, experiment: Experiment) -> str:
        """One line on where pictures are kept, and why."""
        how = "are kept in memory once decoded" if self.keep else "are decoded for every step"
        limit = f"pictures.keep is {experiment.pictures.keep}, pictures.memory_gib {experiment.pictures.memory_gib:g}"
        line = f"{self.target}: train and validation {self.noun}s take {self.gib:.2f} GiB and {how} ({limit})"
        return line if self.noun == "picture" else f"{line}; {self.noun}s are not augmented"


class Pictures:
    """Decodes pictures by row number on all cores; keeps them where that was chosen."""

    def __init__(
        self, raw: Sequence[Row], encoder: TrainableEncoder, *, keep: bool, kept: dict[int, Arrays] | None = None
    ) -> None:
        self._raw, self._encoder, self._keep = raw, encoder, keep
        self._kept: dict[int, Arrays] = {} if kept is None or not keep else kept
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)  # Pillow decodes and resizes outside Python's lock

    def __call__(self, rows: Rows) -> Arrays:
        """The pictures (B, H, W, 3) of some rows. Raises InputError for one that can no longer be read."""
        numbers = [int(row) for row in rows]
        missing = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        raw = (self._raw[number] for number in missing)
        decoded = dict(zip(missing, self._pool.map(decoded_picture, raw, itertools.repeat(self._encoder)), strict=True))
        if self._keep:
            self._kept.update(decoded)
        return np.stack([self._kept[number] if self._keep else decoded[number] for number in numbers])


class ReadAhead:
    """Pictures in the order of the steps, decoded by this process's threads while earlier steps train."""

    def __init__(self, coming: Iterator[Rows], raw: Sequence[Row], encoder: TrainableEncoder) -> None:
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self._decoding = ((rows, [pool.submit(decoded_picture, raw[row], encoder) for row in rows]) for rows in coming)
        self._ahead = deque(itertools.islice(self._decoding, BATCHES_AHEAD))

    def __call__(self, rows: Rows) -> Arrays:
        expected, pictures = self._ahead.popleft()
        assert (expected == rows).all(), "the stream's order is not training's"
        self._ahead.extend(itertools.islice(self._decoding, 1))
        return np.stack([picture.result() for picture in pictures])


def decoded_picture(row: Row, encoder: TrainableEncoder) -> Arrays:
    """One picture (H, W, 3), or one clip. Raises InputError where it can no longer be read."""
    try:
        return encoder.array_of(row.read())
    except RowError as error:
        raise InputError(
            f"{encoder.noun} {row.id} was embedded and can no longer be read ({error}); run python -m pipelines.embed "
            "again"
        ) from None


def picture_data(
    experiment: Experiment, data: TrainingData, ids: Sequence[str], rows: Mapping[str, Row], encoder: TrainableEncoder
) -> PictureData:
    """Join the target's table with its raw rows, and choose whether pictures are kept.

    Args:
        experiment: whose target's encoder is trained.
        data: splits, shots and labels, by row of the target's table.
        ids: of that table's rows.
        rows: the corpus as it is now, by id.
        encoder: the target's; decodes one picture here to know their size.

    Raises:
        InputError: a row of the table is no longer in the corpus.
    """
    raw = raw_rows(experiment.target, ids, rows)
    size = decoded_picture(raw[int(data.train[data.target].rows[0])], encoder).nbytes
    keep = experiment.pictures.keep
    fits = size * (len(data.train[data.target]) + len(data.val)) <= experiment.pictures.memory_gib * GIB
    kept = fits if keep == "auto" else keep == "memory"
    return PictureData(**vars(data), raw=raw, keep=kept, picture_bytes=size, noun=encoder.noun)


def raw_rows(corpus: str, ids: Sequence[str], rows: Mapping[str, Row]) -> tuple[Row, ...]:
    """A table's rows as they are listed now. Raises InputError where one is no longer in the corpus."""
    gone = [row_id for row_id in ids if row_id not in rows]
    if gone:
        raise InputError(
            f"corpora.{corpus} no longer has {len(gone)} of its {len(ids)} embedded rows, first {gone[0]}; "
            "run python -m pipelines.embed again"
        )
    return tuple(rows[row_id] for row_id in ids)


@dataclass(frozen=True)
class TargetOrder:
    """Which of the target's pictures one rank needs at every step: a pure function of (seed, step)."""

    plan: MixingPlan
    table_rows: Rows  # of the train split
    seed: int
    rank: int
    world_size: int
    parts: tuple[Part, ...]

    def stream(self) -> SampleStream:
        """The target's sample stream: the one a frozen backbone's training would see."""
        return SampleStream(self.plan.target, len(self.table_rows), self.seed)

    def share(self, step: int, part: Part) -> slice:
        start, stop = self.plan.sample_range(self.plan.target, step)
        return rank_share(stop - start, *part.across_ranks(self.rank, self.world_size))

    def coming(self, step: int, max_steps: int) -> Iterator[Rows]:
        """Yield the rows of every part of every step from `step` on, in the order in which training asks for them."""
        stream = self.stream()
        for each in range(step, max_steps):
            if not any(self.plan.target in group for group in self.plan.groups(each)):
                continue
            positions = stream.rows(*self.plan.sample_range(self.plan.target, each))
            for part in self.parts:
                rows = self.table_rows[positions[self.share(each, part)]]
                if len(rows):
                    yield rows


@dataclass(frozen=True)
class Crops:
    """For B pictures: the crop's centre and size as shares of the picture, (x, y) each, and whether it is flipped."""

    centre_B2: npt.NDArray[np.float64]
    size_B2: npt.NDArray[np.float64]
    flipped_B: npt.NDArray[np.bool_]

    @classmethod
    def draw(cls, num_pictures: int, *, seed: int, step: int, min_crop: float) -> Crops:
        """Draw an area in [min_crop, 1] of the picture, an aspect ratio, a position and a flip for each picture."""
        rng = np.random.default_rng([seed % 2**32, step, 0xC409])  # the constant keeps crops apart from other draws
        area_B = rng.uniform(min_crop, 1, num_pictures)
        aspect_B = np.exp(rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1]), num_pictures))
        size_B2 = np.minimum(1, np.stack([np.sqrt(area_B * aspect_B), np.sqrt(area_B / aspect_B)], axis=1))
        centre_B2 = size_B2 / 2 + rng.uniform(size=(num_pictures, 2)) * (1 - size_B2)
        return cls(centre_B2, size_B2, rng.uniform(size=num_pictures) < 0.5)

    def share(self, rows: slice) -> Crops:
        return Crops(self.centre_B2[rows], self.size_B2[rows], self.flipped_B[rows])


def crop_and_flip(picture_B3HW: Tensor, crops: Crops) -> Tensor:
    """Each picture's crop at the picture's own size (B, 3, H, W), float32 on the scale of its input."""
    height, width = picture_B3HW.shape[2:]
    flip_B = np.where(crops.flipped_B, -1.0, 1.0)
    # Upright crops need no product of matrices for their grid, and one plane after the other is read faster: together
    # half the time of affine_grid and of a picture with its channels last.
    grid_BHW2 = torch.empty(len(flip_B), height, width, 2, device=picture_B3HW.device)
    grid_BHW2[..., 0] = _read_at(width, crops.size_B2[:, 0] * flip_B, crops.centre_B2[:, 0])[:, None, :]
    grid_BHW2[..., 1] = _read_at(height, crops.size_B2[:, 1], crops.centre_B2[:, 1])[:, :, None]
    pixels_B3HW = picture_B3HW.to(torch.float32, memory_format=torch.contiguous_format)
    return functional.grid_sample(pixels_B3HW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def _read_at(num_pixels: int, size_B: Shares, centre_B: Shares) -> Tensor:
    """Where an axis's pixels (B, N) are read, float32: grid_sample's picture reaches from -1 to 1."""
    middles_N = (2 * np.arange(num_pixels) + 1) / num_pixels - 1
    read_at_BN = size_B[:, None] * middles_N + (2 * centre_B[:, None] - 1)
    return torch.from_numpy(read_at_BN.astype(np.float32))
