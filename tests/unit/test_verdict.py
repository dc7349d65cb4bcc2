"""The verdict says what a sweep's numbers support, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweep_records import GAIN, parent_record, record, sweep_records, trial, values
from tune_spaces import Arm, Space, load_space
from uml_core.config import load_experiment
from uml_core.evaluation.statistics import WORTH, pairs_to_decide
from uml_core.reporting.collect import collect_sweep
from uml_core.reporting.verdict import Verdict, verdict_of
from uml_core.sweeps.space import space_as_json, space_from_json
from uml_core.tracking.records import RunRecord


def verdict(records: Sequence[RunRecord]) -> Verdict:
    return verdict_of(collect_sweep(records, records[0]))


def verdict_by_seed(measured: Iterable[Mapping[str, float]], **options: str) -> Verdict:
    """Of test accuracies by arm, one mapping a seed."""
    parent = parent_record(**options)
    trials = [trial(parent, arm, seed, test) for seed, each in enumerate(measured) for arm, test in each.items()]
    return verdict([parent, *trials])


def verdict_for(arms: Mapping[str, float], **options: object) -> Verdict:
    return verdict(sweep_records(arms, **options))  # type: ignore[arg-type]


def test_gain_beyond_every_control() -> None:
    found = verdict_for(GAIN)
    assert found.kind == "gain"
    assert found.text.startswith("Gain with all training data: corpus names raises test accuracy on pictures by +")
    assert "beyond the shuffled control" in found.text
    assert "co-training" in found.text
    against = [claim.against for claim in found.conditions[0].claims]
    assert against == ["unimodal", "linear_probe", "shuffled_init", "noise_init", "zero_shot"]


ALTERNATIVES = {"ridge": 0.62, "discriminant": 0.61, "logistic": 0.61, "prior": 0.60, "shuffled_prior": 0.60}
ALL = {**GAIN, **ALTERNATIVES}


def test_the_best_on_validation_is_shipped_and_said_first() -> None:
    found = verdict_for(ALL)
    assert found.text.startswith(
        "Ship uml_init with all training data: +4.0 ± 0.5 points over uml; unpaired data are worth +6.0 ± 0.5 points "
        "over ridge. Co-training: Gain with all training data"
    )
    assert found.kind == "gain"


def test_ridge_is_shipped_where_unpaired_data_add_nothing_reliable() -> None:
    found = verdict_for({**ALL, "ridge": 0.68})
    assert found.text.startswith("Ship ridge with all training data: ")
    assert "unpaired data add nothing reliable (the best with them, uml_init:" in found.text
    assert "No gain with all training data over ridge: uml_init is above unimodal by" in found.text
    assert found.kind == "no_gain"


@pytest.mark.parametrize(("flattered", "shipped"), [(0.15, "prior"), (0.19, "the linear probe")])
def test_an_arm_that_validation_chose_in_must_be_reliably_above(flattered: float, shipped: str) -> None:
    parent = parent_record()
    records = [parent]
    for seed in range(5):
        for arm, accuracy in values({**ALL, "ridge": 0.70, "prior": 0.71}, seed).items():
            more = flattered + 0.05 * (-1) ** seed if arm == "linear_probe" else 0.0
            records.append(trial(parent, arm, seed, accuracy, val=accuracy + more))
    assert verdict(records).text.startswith(f"Ship {shipped} with all training data: ")


def test_an_untrained_head_that_does_better_is_shipped() -> None:
    found = verdict_for({**ALL, "zero_shot": 0.9})
    assert found.text.startswith("Ship the untrained zero-shot head with all training data: training lowers it by 22.")
    assert "No gain with all training data over the untrained zero-shot head" in found.text
    assert found.kind == "gain", "of unpaired data, not of training on them"


@pytest.mark.parametrize(("shuffled", "kind"), [(0.60, "gain"), (0.80, "no_gain")])
def test_a_prior_must_stand_above_its_shuffled_control(shuffled: float, kind: str) -> None:
    found = verdict_for({**ALL, "uml_init": 0.60, "prior": 0.80, "shuffled_prior": shuffled})
    assert found.text.startswith("Ship prior with all training data: ")
    assert ("but shuffled labels do as well" in found.text) == (kind == "no_gain")
    assert found.kind == kind


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (0.80, "which is what unpaired data are worth. In closed form: Gain with all training data: "),
        (0.70, "unpaired data add nothing reliable (the best with them, prior: "),
        (0.50, "leave it out."),
    ],
)
def test_closed_form_is_compared_with_what_takes_no_step(prior: float, words: str) -> None:
    heads = {"ridge": 0.70, "discriminant": 0.70, "logistic": 0.60, "zero_shot": 0.30, "shuffled_prior": 0.65}
    found = verdict_for({**heads, "prior": prior}, parent=parent_record("closed_form", headline="prior"))
    assert words in found.text
    assert "Co-training" not in found.text
    assert "Not compared" not in found.text
    assert "loss_weight" not in found.text


@pytest.mark.parametrize(
    ("misled", "words"),
    [
        (0.70, " Of prior the bridge is worth +10.0"),
        (0.80, " The bridge adds nothing reliable to prior ("),
    ],
)
def test_a_bridge_is_worth_what_it_gains_over_its_names_shuffled(misled: float, words: str) -> None:
    parent = parent_record()
    space = space_from_json(str(parent.space_json))
    control = Arm("shuffled_bridge", role="shuffled_bridge", controls="prior")
    parent = replace(parent, space_json=space_as_json(replace(space, arms=(*space.arms, control))))
    found = verdict_for({**ALL, "uml_init": 0.60, "prior": 0.80, "shuffled_bridge": misled}, parent=parent)
    assert found.text.startswith("Ship prior with all training data: ")
    assert words in found.text
    assert " points over its names shuffled" in found.text
    assert found.kind == "gain", "of the names, whatever the bridge is worth"


@pytest.mark.parametrize("shots", [(4,), (1, 4)])
def test_what_is_shipped_does_not_hide_that_training_harms(shots: tuple[int, ...]) -> None:
    worse = {**ALL, "uml_init": 0.55, "uml": 0.55, "unimodal_init": 0.55, "prior": 0.75}
    found = verdict_for(worse, parent=parent_record("few_shot"), shots=shots)
    assert found.text.startswith("Ship prior at ")
    assert "harm" in found.text.lower()
    assert "raises" not in found.text
    assert found.kind == "harm"


def test_arms_are_compared_over_the_seeds_that_all_have() -> None:
    records = sweep_records({**ALL, "ridge": 0.70, "prior": 0.66})
    hard = [each for each in records if each.params.get("seed") == "4" and each.arm == "prior"]
    found = verdict([each for each in records if each not in hard])
    assert found.text.startswith("Ship ridge with all training data: ")


def test_worth_without_a_shuffled_control_says_so() -> None:
    arms = {name: mean for name, mean in ALL.items() if name != "shuffled"} | {"uml": 0.80}
    assert "not compared with shuffled labels" in verdict_for(arms, parent=parent_record("few_shot"), shots=(4,)).text


def test_where_classes_have_no_train_row_the_head_that_answers_them_is_shipped() -> None:
    parent, *trials = sweep_records({**ALL, "ridge": 0.68})
    harmonic = {"prior": 0.5, "shuffled_prior": 0.2}
    trials = [
        replace(each, metrics=each.metrics | {"test/harmonic_mean": harmonic.get(each.arm, 0.0)}) for each in trials
    ]
    assert verdict([parent, *trials]).text.startswith("Ship ridge with all training data: ")
    unseen = replace(parent, tags=parent.tags | {"uml.unseen_classes": "2"})
    assert verdict([unseen, *trials]).text.startswith(
        "Ship prior with all training data: +50.0 ± 0.0 points of the harmonic mean of accuracy on classes with and "
        "without train rows over ridge, which is what unpaired data are worth. "
    )


def test_the_choice_looks_at_validation_alone() -> None:
    parent = parent_record()
    records = [parent]
    for seed in range(5):
        for arm, accuracy in values(ALL, seed).items():
            val = 0.9 + accuracy / 100 if arm == "prior" else accuracy
            records.append(trial(parent, arm, seed, accuracy, val=val))
    found = verdict(records)
    assert found.text.startswith("Ship prior with all training data: -8.0"), found.text
    assert "; validation chose it, on test unpaired data add nothing reliable (-2.0" in found.text, (
        "no worth below zero"
    )


def test_two_seeds_ship_what_needs_no_unpaired_data() -> None:
    found = verdict_for(ALL, seeds=2)
    assert found.kind == "undecided"
    assert "Ship" not in found.text


def test_the_order_of_runs_changes_nothing() -> None:
    records = sweep_records(GAIN)
    assert verdict_of(collect_sweep(list(reversed(records)), records[0])) == verdict(records)


@pytest.mark.parametrize("control", ["shuffled_init", "noise_init", "unrelated_init"])
def test_what_a_control_does_as_well_is_no_gain(control: str) -> None:
    found = verdict_for({**GAIN, control: GAIN["uml_init"]})
    assert found.kind == "no_gain"
    assert found.text.startswith("No gain with all training data beyond the controls")
    assert control in found.text


def test_what_the_linear_probe_does_as_well_is_no_gain() -> None:
    found = verdict_for({**GAIN, "linear_probe": GAIN["uml_init"]})
    assert found.kind == "no_gain"
    assert "No gain with all training data over the linear probe" in found.text


def test_no_difference_is_no_gain() -> None:
    found = verdict_for({**GAIN, "uml_init": GAIN["unimodal"]})
    assert found.kind == "no_gain"
    assert "no reliable difference" in found.text


def test_harm_is_told_with_signs_that_agree() -> None:
    found = verdict_for({**GAIN, "uml_init": 0.5})
    assert found.kind == "harm"
    assert found.text.startswith("Warning, harm with all training data: corpus names lowers test accuracy on pictures")
    assert "leave it out" in found.text


def test_two_auxiliary_corpora_take_a_plural_verb() -> None:
    parent = parent_record(uml_corpora="pictures,names,sounds")
    found = verdict_for(GAIN, parent=parent)
    assert "names and sounds raise test accuracy" in found.text


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_are_undecided(seeds: int) -> None:
    found = verdict_for(GAIN, seeds=seeds)
    assert found.kind == "undecided"
    assert f"{seeds} seed{'' if seeds == 1 else 's'} cannot decide" in found.text
    assert "tune.seeds=3" in found.text


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("uml_init", "arm uml_init has no measured trials"),
        ("unimodal", "arm unimodal has no measured trials"),
        ("shuffled_init", "the shuffled control was not measured"),
        ("linear_probe", "the linear probe was not measured"),
    ],
)
def test_missing_arms_are_undecided(missing: str, words: str) -> None:
    found = verdict_for({arm: mean for arm, mean in GAIN.items() if arm != missing})
    assert found.kind == "undecided"
    assert words in found.text


def test_a_control_with_too_few_seeds_supports_no_gain() -> None:
    records = sweep_records({arm: mean for arm, mean in GAIN.items() if arm != "shuffled_init"})
    records.append(trial(records[0], "shuffled_init", 0, 0.61))
    records += [trial(records[0], "shuffled_init", seed, None, error="out of memory") for seed in range(1, 5)]
    found = verdict(records)
    assert found.kind == "undecided"
    assert "fewer than 3 seeds were measured of control shuffled_init" in found.text


def test_arms_without_a_seed_in_common_are_undecided() -> None:
    parent = parent_record()
    records = [parent]
    records += [trial(parent, "unimodal", seed, 0.6) for seed in range(3)]
    records += [trial(parent, arm, seed, 0.7) for arm in ("uml_init", "linear_probe") for seed in range(3, 6)]
    found = verdict(records)
    assert found.kind == "undecided"
    assert "no seed in common" in found.text


def test_a_sweep_without_trials_is_undecided() -> None:
    assert verdict([parent_record()]).kind == "undecided"
    unselected = parent_record()
    found = verdict([unselected, trial(unselected, "uml_init", 0, 0.7, selected=False)])
    assert found.kind == "undecided"


def test_lambda_zero_that_does_as_well_is_no_gain_by_cotraining() -> None:
    """Where the initialised head without co-training does the same, the text must not credit co-training."""
    measured = [values(GAIN, seed) for seed in range(5)]
    found = verdict_by_seed({**each, "unimodal_init": each["uml_init"]} for each in measured)
    assert "and co-training 0.0 ± 0.0 (not reliable)." in found.text


def test_lambda_zero_that_does_as_well_with_a_random_head_is_no_gain() -> None:
    measured = [values(GAIN, seed) for seed in range(5)]
    found = verdict_by_seed(({**each, "unimodal": each["uml"]} for each in measured), headline="uml")
    assert found.kind == "no_gain"
    assert "makes no reliable difference (equal accuracy at each of 5 seeds)." in found.text


def test_the_seeds_that_would_decide_are_those_of_the_doubt_that_needs_most() -> None:
    above = {"shuffled_init": (0.004, 0.020, 0.012, 0.007, -0.006), "noise_init": (0.05, -0.02, 0.03, 0.01, 0.0)}
    below = [{**dict.fromkeys(GAIN, 0.4 + 0.001 * seed), "uml_init": 0.6} for seed in range(5)]
    found = verdict_by_seed(
        {**each, **{arm: 0.6 - by[seed] for arm, by in above.items()}} for seed, each in enumerate(below)
    )
    seeds = {each.against: pairs_to_decide(each.difference, WORTH, tests=4) for each in found.conditions[0].claims}
    assert seeds["shuffled_init"] < seeds["noise_init"]
    assert f"tune.seeds={seeds['noise_init']} would decide" in found.text, found.text


@pytest.mark.parametrize(
    ("gains", "kind", "words"),
    [
        # By hand: t(1 - .025 / 4) + t(.8) of 2 degrees, 8.860 + 1.061, times 4.36 / sqrt(3) points.
        ((0.11, 0.03, 0.04), "undecided", "3 seeds like these show a gain of 25.0 points or more; tune.seeds=7 would"),
        ((0.001, -0.001, 0.0), "no_gain", "3 seeds like these show a gain of 0.6 points or more."),
        ((0.05, -0.04, 0.0), "undecided", "points or more; more than 200 would decide."),
    ],
)
def test_a_gain_that_may_be_there_is_undecided_and_the_seeds_that_would_tell_are_named(
    gains: Sequence[float], kind: str, words: str
) -> None:
    found = verdict_by_seed({**dict.fromkeys(GAIN, 0.6), "uml_init": 0.6 + gain} for gain in gains)
    assert (found.kind, words in found.text) == (kind, True), found.text


def test_a_random_head_is_held_against_its_own_controls() -> None:
    found = verdict_for({**GAIN, "shuffled": GAIN["uml"]}, parent=parent_record(headline="uml"))
    assert found.kind == "no_gain"
    assert "shuffled (" in found.text


def test_two_conditions_share_one_sentence_that_starts_with_the_harm() -> None:
    parent = parent_record()
    few = sweep_records(GAIN, parent=parent, shots=(1,))
    all_data = sweep_records({**GAIN, "uml_init": 0.5}, parent=parent, shots=(None,))
    found = verdict([*few, *all_data[1:]])
    assert found.kind == "harm"
    assert [part.kind for part in found.conditions] == ["gain", "harm"]
    assert found.text.startswith("Warning, harm with all training data (-")
    assert "; gain at 1 shot (+" in found.text
    first, lacking = found.text.split(". ")
    assert lacking == "Not compared with ridge, the linear discriminant and logistic regression."
    assert first.count(".") == first.count(" points") * 2  # one sentence: the other dots are decimals


def test_conditions_stand_in_the_order_of_shots() -> None:
    found = verdict_for(GAIN, shots=(None, 16, 2))
    assert [part.condition.shots for part in found.conditions] == [2, 16, None]
    assert found.text.startswith(
        "Gain: corpus names raises test accuracy on pictures by +8.0 ± 0.4 points at 2 shots, +"
    )
    assert "worth it at every number of shots measured" in found.text


def test_mixing_ratio_never_claims_a_gain() -> None:
    parent = parent_record("mixing_ratio", headline="uml")
    found = verdict_for({"unimodal": 0.5, "uml": 0.9}, parent=parent)
    assert found.kind == "undecided"
    assert "with no controls; run tune --space controls" in found.text
    more = [*sweep_records({"unimodal": 0.5, "uml": 0.9}, parent=parent)]
    more += [trial(parent, "uml", seed, None, val=0.8, selected=False) for seed in range(5)]
    assert "with unequal search budgets and no controls" in verdict(more).text
    both = verdict_for({"unimodal": 0.5, "uml": 0.9}, parent=parent, shots=(1, None))
    assert both.kind == "undecided"


DEMO = load_experiment(Path(__file__).parents[2] / "examples" / "demo.yaml")
OWN = load_space(str(Path(__file__).parents[2] / "examples" / "own_space.py"), DEMO)


def of_own_space(means: Mapping[str, float], space: Space = OWN) -> Verdict:
    parent = parent_record("examples/own_space.py", headline=space.headline)
    return verdict(sweep_records(means, parent=replace(parent, space_json=space_as_json(space))))


@pytest.mark.parametrize(
    ("alone", "together", "wrong", "kind", "words"),
    [
        (0.60, 0.68, 0.60, "gain", "beyond the shuffled control (+8."),
        (0.60, 0.68, 0.68, "no_gain", "but not reliably above wrong (0.0 points)"),
        (0.60, 0.60, 0.60, "no_gain", "no reliable difference"),
        (0.60, 0.50, 0.60, "harm", "Warning, harm with all training data: corpus names lowers"),
        (0.60, 0.68, None, "undecided", "but the shuffled control was not measured"),
    ],
)
def test_a_space_of_ones_own_gets_a_full_verdict(
    alone: float, together: float, wrong: float | None, kind: str, words: str
) -> None:
    means = {"alone": alone, "together": together} | ({} if wrong is None else {"wrong": wrong})
    found = of_own_space(means)
    assert found.kind == kind, found.text
    assert words in found.text


def test_a_control_of_its_own_kind_is_called_by_its_arm_and_one_of_another_arm_does_not_count() -> None:
    alone, together, wrong = OWN.arms
    french = replace(wrong, name="french", role="control", controls="together")
    other = replace(wrong, name="other", controls="alone")
    space = replace(OWN, arms=(alone, together, french, other), needs=("french",))
    found = of_own_space({"alone": 0.6, "together": 0.68, "french": 0.6, "other": 0.68}, space)
    assert "beyond the french control" in found.text
    assert [claim.against for claim in found.conditions[0].claims] == ["alone", "french"]


def test_a_space_that_names_no_controls_claims_nothing_and_says_which_field_would() -> None:
    means = {"alone": 0.6, "together": 0.68, "wrong": 0.6}
    silent = of_own_space(means, replace(OWN, needs=None))
    assert silent.kind == "undecided"
    assert silent.text.endswith("or name the controls that a gain needs in the space: Space(needs=...).")
    assert of_own_space(means, replace(OWN, needs=())).text.endswith("run tune --space controls to decide.")


def test_a_sweep_of_before_keeps_the_verdict_it_was_given_and_gets_no_other() -> None:
    """Its space was not logged, so nothing tells which arms are controls."""
    recorded = {"uml_verdict": "Gain with all training data: as told then.", "uml_verdict_kind": "gain"}
    parent = replace(parent_record(**recorded), space_json="")
    found = verdict(sweep_records(GAIN, parent=parent))
    assert (found.kind, found.text) == ("gain", recorded["uml_verdict"])
    parent = replace(parent_record(), space_json="")
    assert verdict(sweep_records(GAIN, parent=parent)).kind == "undecided"


def test_a_shifted_test_set_is_not_what_helps() -> None:
    parent = parent_record(uml_corpora="pictures,names,sketches")
    parent = replace(parent, params={**parent.params, "corpora.sketches.role": "shifted"})
    text = verdict(sweep_records(GAIN, parent=parent)).text
    assert "names" in text
    assert "sketches" not in text


def test_other_runs_of_the_experiment_do_not_count() -> None:
    records = sweep_records(GAIN)
    other = sweep_records({**GAIN, "uml_init": 0.1})
    plain = record("uml", metrics={"test/accuracy": 0.1})
    assert verdict([*records, *other, plain]) == verdict(records)


@pytest.mark.parametrize(("noise", "kind"), [(0.60, "gain"), (0.64, "no_gain"), (None, "undecided")])
def test_a_self_supervised_gain_must_stand_above_noise(noise: float | None, kind: str) -> None:
    arms = {"unimodal": 0.60, "uml": 0.64, "untrained": 0.50} | ({} if noise is None else {"noise": noise})
    parent = parent_record("self_supervised", headline="uml")
    found = verdict(sweep_records(arms, parent=parent))
    assert found.kind == kind, found.text
    assert "noise" in found.text


def over_shots(gains: Mapping[int, float], space: str = "few_shot") -> Verdict:
    """A sweep whose gain (in accuracy) depends on the shots."""
    parent = parent_record(space)
    records = [parent]
    for shots, gain in gains.items():
        arms = {**GAIN, "uml_init": GAIN["unimodal"] + gain}
        records += sweep_records(arms, parent=parent, shots=(shots,))[1:]
    return verdict(records)


def test_a_gain_that_fades_says_below_how_many_shots_it_is_worth_it() -> None:
    found = over_shots({1: 0.08, 4: 0.05, 8: 0.0, 16: 0.0})
    assert found.kind == "gain"
    assert found.text.startswith("Gain: corpus names raises test accuracy on pictures by +8.0 ± 0.4 points at 1 shot, ")
    assert "0.0 ± 0.4 at 16 shots: worth it below 8 shots, beyond the shuffled control" in found.text
    assert "(5 seeds, uml_init against unimodal)." in found.text


def test_a_gain_in_the_middle_names_where() -> None:
    assert "worth it at 4 shots, beyond" in over_shots({1: 0.0, 4: 0.08, 8: 0.0}).text


def test_no_gain_at_any_shots_and_none_beyond_the_controls() -> None:
    flat = over_shots({1: 0.0, 4: 0.0})
    assert flat.kind == "no_gain"
    assert flat.text.startswith("No gain at any number of shots: corpus names changes test accuracy on pictures by ")
    assert "no reliable difference" in flat.text
    parent = parent_record("few_shot")
    records = [parent]
    for shots in (1, 4):
        records += sweep_records({**GAIN, "shuffled_init": GAIN["uml_init"]}, parent=parent, shots=(shots,))[1:]
    assert "not beyond the controls (5 seeds" in verdict(records).text


def test_unequal_budgets_decide_nothing_in_a_space_with_controls() -> None:
    records = sweep_records(GAIN)
    records += [trial(records[0], "uml_init", seed, None, val=0.5, selected=False) for seed in range(5)]
    found = verdict(records)
    assert found.kind == "undecided"
    assert "with unequal search budgets; run tune --space controls" in found.text


@pytest.mark.parametrize("suffix", ["", "_frozen"])
def test_a_weight_transfer_must_stand_above_its_shuffled_weights(suffix: str) -> None:
    arms = {f"scratch{suffix}": 0.5, f"transferred{suffix}": 0.6, f"shuffled{suffix}": 0.52}

    def found(changes: Mapping[str, float]) -> Verdict:
        parent = parent_record("weight_transfer", headline=f"transferred{suffix}", uml_baseline=f"scratch{suffix}")
        return verdict(sweep_records({**arms, **changes}, parent=parent))

    gain = found({})
    assert gain.kind == "gain"
    assert "the text model's weights raise test accuracy on pictures by +10" in gain.text
    assert "beyond the shuffled control" in gain.text
    assert found({f"shuffled{suffix}": 0.6}).kind == "no_gain"
    harm = found({f"transferred{suffix}": 0.4})
    assert harm.kind == "harm"
    assert harm.text.endswith("leave them out.")
