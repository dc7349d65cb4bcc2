"""How corpora are mixed: pure functions of (seed, step), the same on every rank and after every resume.

In: batch size, ratios, corpus sizes, seed. Out: for any step, which rows of which corpus are in it.
A fractional ratio is exact over time: after s steps a corpus has given floor(s × batch_size × ratio) samples.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from uml_core.config import Experiment, LossWeightSchedule

MAX_DENOMINATOR = 10_000  # of a fraction that a ratio is taken for where it is its float: 1/3 for 0.3333333333333333


def as_fraction(ratio: float) -> Fraction:
    """The fraction a ratio stands for: a simple one where it is the same float, else its decimals as written."""
    simple = Fraction(ratio).limit_denominator(MAX_DENOMINATOR)
    return simple if float(simple) == ratio else Fraction(repr(float(ratio)))


def samples_before(step: int, *, batch_size: int, ratio: Fraction) -> int:
    """How many samples of a corpus the steps before `step` hold, by integer arithmetic."""
    return step * batch_size * ratio.numerator // ratio.denominator


def weight_at(step: int, setting: float | LossWeightSchedule) -> float:
    """A loss weight at a step: constant, or from start to end along a line or half a cosine, then at end."""
    if not isinstance(setting, LossWeightSchedule):
        return setting
    done = min(1.0, step / setting.steps)
    if setting.schedule == "cosine":
        done = 0.5 * (1 - math.cos(math.pi * done))
    return setting.start + (setting.end - setting.start) * done


@dataclass(frozen=True)
class MixingPlan:
    """The mixing of an experiment, reduced to the corpora that take part at all (weight and ratio above 0)."""

    target: str
    loss_weight: Mapping[str, float | LossWeightSchedule]
    batch_ratio: dict[str, Fraction]
    batch_size: int
    alternate: bool
    warm_start_corpus: str | None
    warm_start_steps: int

    @classmethod
    def from_experiment(cls, experiment: Experiment) -> MixingPlan:
        active = [name for name in experiment.corpora if experiment.is_active(name)]
        warm_start = experiment.mixing.warm_start
        return cls(
            target=experiment.target,
            loss_weight={name: experiment.loss_weight_setting(name) for name in active},
            batch_ratio={name: as_fraction(experiment.batch_ratio(name)) for name in active},
            batch_size=experiment.train.batch_size,
            alternate=experiment.mixing.schedule == "alternate",
            warm_start_corpus=warm_start.corpus,
            warm_start_steps=warm_start.steps,
        )

    @property
    def corpora(self) -> tuple[str, ...]:
        """The corpora that take part, in the experiment's order."""
        return tuple(self.loss_weight)

    @property
    def scheduled(self) -> tuple[str, ...]:
        return tuple(name for name, setting in self.loss_weight.items() if isinstance(setting, LossWeightSchedule))

    def loss_weights(self, step: int) -> dict[str, float]:
        return {name: weight_at(step, setting) for name, setting in self.loss_weight.items()}

    def groups(self, step: int) -> tuple[tuple[str, ...], ...]:
        """The corpora of a step in groups of one optimiser update each: one alone, all jointly, or each in turn.

        A corpus that would be alone in an update while its scheduled weight is 0 has none: without a gradient, Adam
        would still move the weights, by its momentum and the decay. A warm start on a corpus that takes no part is
        idle, so that the target has the same batches at the same learning rates with and without that corpus: a
        matched baseline differs in the data, not in the schedule.
        """
        if step < self.warm_start_steps:
            alone = tuple(name for name in self.corpora if name == self.warm_start_corpus)
        elif self.alternate:
            alone = self.corpora
        else:
            return (self.corpora,)
        return tuple((name,) for name in alone if weight_at(step, self.loss_weight[name]) > 0)

    def sample_range(self, corpus: str, step: int) -> tuple[int, int]:
        """[start, stop) of a corpus's endless sample stream that a step takes.

        A corpus's stream does not advance while another corpus warms up alone.
        """
        waits = 0 if corpus == self.warm_start_corpus else self.warm_start_steps
        start, stop = (
            samples_before(max(0, each - waits), batch_size=self.batch_size, ratio=self.batch_ratio[corpus])
            for each in (step, step + 1)
        )
        return start, stop


class SampleStream:
    """The endless shuffled stream of a corpus's rows: every epoch a new permutation of all rows, seeded by its name."""

    def __init__(self, corpus: str, num_rows: int, seed: int) -> None:
        self._key = (seed % 2**32, zlib.crc32(corpus.encode()))
        self._num_rows = num_rows
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self._num_rows)
            take = min(stop - start, self._num_rows - offset)
            pieces.append(self._permutation(epoch)[offset : offset + take])
            start += take
        return pieces[0] if len(pieces) == 1 else np.concatenate([self._order[:0], *pieces])

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        # One epoch is kept: steps go forward, and a resumed run draws its epoch again from (seed, corpus, epoch).
        if epoch != self._epoch:
            self._order = np.random.default_rng([*self._key, epoch]).permutation(self._num_rows)
            self._epoch = epoch
        return self._order


def rank_share(num_samples: int, rank: int, world_size: int) -> slice:
    """One rank's share of a global batch: contiguous, and the shares of all ranks make up the batch."""
    return slice(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


@dataclass(frozen=True)
class Part:
    """One of the parts that a rank's share of a batch is computed in (train.accumulate)."""

    index: int = 0
    num_parts: int = 1

    def as_rank(self, rank: int, world_size: int) -> tuple[int, int]:
        """Rank and world size under which the part is a rank's share: n parts are n times as many ranks."""
        return rank * self.num_parts + self.index, world_size * self.num_parts

    def across_ranks(self, rank: int, world_size: int) -> tuple[int, int]:
        """The same where the part of all ranks together is one worker's part: batch norm joins it."""
        return self.index * world_size + rank, world_size * self.num_parts


WHOLE = Part()


def parts_of(num_parts: int) -> tuple[Part, ...]:
    return tuple(Part(index, num_parts) for index in range(num_parts))
