"""Mixing: exact counts, pure functions of (seed, step), the same joined batch on any number of ranks."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_config import MINIMAL
from uml_core.config import parse_experiment
from uml_core.errors import InputError
from uml_core.feed.mixing import MixingPlan, SampleStream, as_fraction, rank_share, samples_before


def plan_of(**settings: object) -> MixingPlan:
    return MixingPlan.from_experiment(parse_experiment({**MINIMAL, **settings}))


@given(st.integers(0, 10_000), st.integers(1, 64), st.fractions(0, 4, max_denominator=100))
def test_fractional_ratios_are_exact_over_time(step: int, batch_size: int, ratio: Fraction) -> None:
    count = samples_before(step, batch_size=batch_size, ratio=as_fraction(float(ratio)))
    assert count == step * batch_size * ratio.numerator // ratio.denominator


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.1, Fraction(1, 10)),
        (1 / 3, Fraction(1, 3)),
        (4e-5, Fraction(1, 25_000)),
        (0.12345678, Fraction(12_345_678, 10**8)),
        (1e-300, Fraction(1, 10**300)),
    ],
)
def test_a_ratio_is_the_fraction_it_is_written_as(ratio: float, expected: Fraction) -> None:
    assert as_fraction(ratio) == expected


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 60), st.integers(0, 3))
def test_every_epoch_holds_every_row_once(num_rows: int, start: int, length: int, seed: int) -> None:
    stream = SampleStream("captions", num_rows, seed)
    epochs = np.concatenate([stream.rows(index, index + 1) for index in range(start + length)] or [np.empty(0, int)])
    for epoch in range(len(epochs) // num_rows):
        assert sorted(epochs[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    piece = SampleStream("captions", num_rows, seed).rows(start, start + length)
    assert piece.tolist() == epochs[start:].tolist(), "a stream read from the middle is the same stream"


def test_streams_of_corpora_and_seeds_differ() -> None:
    first = SampleStream("a", 100, 0).rows(0, 100).tolist()
    assert first != SampleStream("b", 100, 0).rows(0, 100).tolist()
    assert first != SampleStream("a", 100, 1).rows(0, 100).tolist()
    assert first != SampleStream("a", 100, 0).rows(100, 200).tolist()
    assert SampleStream("a", 100, -1).rows(0, 3).shape == (3,)


@given(st.integers(0, 50), st.integers(1, 8))
def test_ranks_make_up_the_batch(num_rows: int, world_size: int) -> None:
    rows = np.arange(num_rows)
    shares = [rows[rank_share(len(rows), rank, world_size)] for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_joint_and_alternate_hold_the_same_samples() -> None:
    mixing = {"batch_ratio": {"captions": 0.25}}
    for schedule, groups in (("joint", (("photos", "captions"),)), ("alternate", (("photos",), ("captions",)))):
        plan = plan_of(mixing={**mixing, "schedule": schedule}, train={"batch_size": 6})
        assert plan.groups(3) == groups
        counts: Counter[str] = Counter()
        for step in range(100):
            for group in plan.groups(step):
                for corpus in group:
                    start, stop = plan.sample_range(corpus, step)
                    counts[corpus] += stop - start
        assert counts == {"photos": 600, "captions": 150}


@pytest.mark.parametrize("corpus", ["photos", "captions"])
def test_warm_start_trains_one_corpus_alone_and_holds_the_others_back(corpus: str) -> None:
    plan = plan_of(mixing={"warm_start": {"corpus": corpus, "steps": 3}}, train={"batch_size": 10})
    other = "captions" if corpus == "photos" else "photos"
    assert [plan.groups(step) for step in range(3)] == [((corpus,),)] * 3
    assert plan.groups(3) == (("photos", "captions"),)
    assert plan.sample_range(corpus, 3) == (30, 40)
    assert plan.sample_range(other, 3) == (0, 10), "its stream starts when it joins"


@pytest.mark.parametrize("setting", ["loss_weight", "batch_ratio"])
def test_a_corpus_switched_off_takes_no_part(setting: str) -> None:
    plan = plan_of(mixing={setting: {"captions": 0}, "warm_start": {"corpus": "photos", "steps": 5}})
    assert plan.corpora == ("photos",)
    assert plan.groups(0) == (("photos",),)
    idle = plan_of(mixing={setting: {"captions": 0}, "warm_start": {"corpus": "captions", "steps": 5}})
    assert [idle.groups(step) for step in (0, 4, 5)] == [(), (), (("photos",),)]
    assert idle.sample_range("photos", 5) == plan.sample_range("photos", 0), "matched: the same target batches"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 2.0, 1: 1.6, 5: 0.0, 9: 0.0}),
        ("cosine", {0: 2.0, 1: 1 + math.cos(math.pi / 5), 5: 0.0, 9: 0.0}),
    ],
)
def test_a_scheduled_weight_by_hand(schedule: str, expected: dict[int, float]) -> None:
    setting = {"schedule": schedule, "start": 2.0, "end": 0.0, "steps": 5}
    plan = plan_of(mixing={"loss_weight": {"captions": setting}})
    assert plan.scheduled == ("captions",)
    for step, weight in expected.items():
        assert plan.loss_weights(step) == {"photos": 1.0, "captions": pytest.approx(weight, abs=1e-12)}
    assert plan_of(mixing={"loss_weight": {"captions": 0.3}}).loss_weights(7) == {"photos": 1.0, "captions": 0.3}


def test_a_corpus_has_no_update_of_its_own_while_its_weight_is_zero() -> None:
    falling = {"schedule": "linear", "start": 1.0, "end": 0.0, "steps": 5}
    plan = plan_of(mixing={"loss_weight": {"captions": falling}, "schedule": "alternate"})
    assert plan.groups(4) == (("photos",), ("captions",))
    assert plan.groups(5) == (("photos",),)
    warm = plan_of(
        mixing={"loss_weight": {"captions": {**falling, "start": 0, "end": 1}}}
        | {"warm_start": {"corpus": "captions", "steps": 3}}
    )
    assert [warm.groups(step) for step in range(4)] == [
        *[(), (("captions",),), (("captions",),)],
        (("photos", "captions"),),
    ]
    joint = plan_of(mixing={"loss_weight": {"captions": falling}})
    assert joint.groups(5) == (("photos", "captions"),), "its loss is logged"


def test_a_corpus_whose_weight_starts_at_zero_takes_part_from_the_start() -> None:
    rising = {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 10}
    assert plan_of(mixing={"loss_weight": {"captions": rising}}).corpora == ("photos", "captions")
    never = {**rising, "end": 0.0}
    assert plan_of(mixing={"loss_weight": {"captions": never}}).corpora == ("photos",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (-1, r"mixing.loss_weight.captions is -1; input should be greater than or equal to 0$"),
        ({"schedule": "linar", "start": 1, "end": 0, "steps": 5}, r"captions.schedule is 'linar'; .* 'linear'\?"),
        ({"schedule": "linear", "start": 1, "end": 0, "step": 5}, r"captions.step'.*'steps'\?.*start, end, steps"),
    ],
)
def test_mistakes_in_a_weight_are_told_of_what_was_given(setting: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(mixing={"loss_weight": {"captions": setting}})
