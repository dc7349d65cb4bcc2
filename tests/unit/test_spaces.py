"""Spaces: what each one compares, equal budgets, and what is refused before anything starts."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tune_spaces
from pipelines.tune.selected import has_control
from tests.conftest import table
from tune_spaces import Arm, Space, available_spaces, load_space, trials_of
from uml_core.config import Experiment, parse_experiment
from uml_core.config.training import LowRankConfig
from uml_core.data.training_data import build_training_data
from uml_core.errors import InputError
from uml_core.feed.mixing import MixingPlan
from uml_core.sweeps.space import Facts, points_per_group, space_as_json, space_from_json, trained_settings

ROOT = Path(__file__).parents[2]
TEXT = {"modality": "text", "format": "table", "path": "names.jsonl"}
TRANSFER = {
    "encoders.image": {"source": "timm", "name": "vit_base_patch16_224", "weights": "random"},
    "model.backbone": "finetune",
    "model.transfer": {"source": "bert-base-uncased"},
}
# What an experiment needs for a space that is not for any of them; dots are written as in `experiment`.
FOR_SPACE: dict[str, dict[str, Any]] = {
    "self_supervised": {"objective": "self_supervised"},
    "weight_transfer": TRANSFER,
}


def experiment(**changes: Any) -> Experiment:
    """Pictures with sentences, templates, sounds, and unrelated sentences; dotted changes with _ for the first dot."""
    tree = {
        "name": "pets",
        "store": "store",
        "target": "photos",
        "corpora": {
            "photos": {"modality": "image", "format": "folder", "path": "photos"},
            "names": TEXT,
            "templates": {"modality": "text", "format": "templates", "template_set": "imagenet_7"},
            "sounds": {"modality": "audio", "format": "folder", "path": "sounds"},
            "other": {**TEXT, "control": "unrelated"},
        },
        "mixing": {"loss_weight": {"other": 0, "sounds": 0.5}},
    }
    return parse_experiment(tree).override({key.replace("_", ".", 1): value for key, value in changes.items()})


SOLVED = ("ridge", "discriminant", "logistic", "prior", "shuffled_prior")


def arms_of(name: str, given_experiment: Experiment) -> list[str]:
    return [arm.name for arm in load_space(name, given_experiment).arms]


def only(*corpora: str) -> dict[str, Any]:
    """The corpora of an experiment with these auxiliaries alone."""
    whole = experiment().model_dump(mode="json")["corpora"]
    return {"corpora": {name: whole[name] for name in ("photos", *corpora)}, "mixing.loss_weight": {}}


@pytest.mark.parametrize("name", available_spaces())
def test_every_space_states_its_question_and_gives_every_arm_the_same_budget_and_seeds(name: str) -> None:
    given_experiment = experiment(**FOR_SPACE.get(name, {}))
    space = load_space(name, given_experiment)
    specs = trials_of(space, given_experiment)
    assert space.question.endswith("?")
    counts = Counter((spec.arm, spec.condition, spec.experiment.seed) for spec in specs)
    solved = {arm.name for arm in space.arms if arm.is_solved}
    assert {count for (arm, _, _), count in counts.items() if arm in solved} <= {1}
    assert len({count for (arm, _, _), count in counts.items() if arm not in solved}) == 1, "equal budgets"
    assert {seed for _, _, seed in counts} == {0, 1, 2}
    assert len(counts) == len({spec.arm for spec in specs}) * len({spec.condition for spec in specs}) * 3, "paired"
    assert all(spec.experiment.seed == spec.experiment.data.split_seed for spec in specs)


@pytest.mark.parametrize("name", available_spaces())
def test_a_space_says_what_its_arms_are_and_is_read_back_as_it_was_logged(name: str) -> None:
    space = load_space(name, experiment(**FOR_SPACE.get(name, {})))
    assert all(arm.says.endswith(".") for arm in space.arms)
    assert space.needs is not None
    read = space_from_json(space_as_json(space))
    assert [(arm.name, arm.says, arm.role, arm.controls, arm.facts) for arm in read.arms] == [
        (arm.name, arm.says, arm.role, arm.controls, arm.facts) for arm in space.arms
    ]
    assert (read.needs, read.subject, read.headline) == (space.needs, space.subject, space.headline)


def test_a_corpus_may_be_called_like_another_arm() -> None:
    tree = experiment().model_dump(mode="json")
    named = {name: {**TEXT, "path": f"{name}.jsonl"} for name in ("x", "x_init", "unimodal")}
    tree |= {"corpora": {"photos": tree["corpora"]["photos"], **named}, "mixing": {}}
    tree["model"]["init_corpus"] = "x"
    facts = {arm.name: arm.facts for arm in load_space("modalities", parse_experiment(tree)).arms}
    assert facts["x_init"] == Facts(corpora=("x",), initialised=True)
    assert facts["(x_init)"] == Facts(corpora=("x_init",))
    assert facts["unimodal"] == Facts(corpora=())
    assert facts["(unimodal)"] == Facts(corpora=("unimodal",))


def test_the_spaces_that_exist() -> None:
    expected = {"controls", "exchange_rate", "few_shot", "linear_probe", "mixing_ratio", "modalities", "text"}
    assert set(available_spaces()) >= expected


def test_few_shot_has_the_papers_shots_and_the_arms_a_verdict_needs() -> None:
    space = load_space("few_shot", experiment())
    assert space.conditions == {"data.shots": (1, 2, 4, 8, 16)}
    alternatives, solved = (
        ["linear_probe", "ridge", "discriminant", "logistic", "zero_shot"],
        ["prior", "shuffled_prior"],
    )
    initialised = ["unimodal", "uml", "unimodal_init", "uml_init", "shuffled_init"]
    assert arms_of("few_shot", experiment()) == [*alternatives, *initialised, *solved]
    at_random = experiment(model_head_init="random", tune_shots=[4, 2])
    assert arms_of("few_shot", at_random) == [*alternatives, "unimodal", "uml", "shuffled", *solved]
    assert load_space("few_shot", at_random).conditions == {"data.shots": (2, 4)}


def test_closed_form_has_the_arms_of_controls_that_take_no_step_and_one_point_each() -> None:
    searched = experiment(tune_lr=[1e-3, 1e-2])
    space = load_space("closed_form", searched)
    taken = [spec for spec in trials_of(load_space("controls", searched), searched) if not spec.experiment.num_steps]
    assert [arm.name for arm in space.arms] == list(dict.fromkeys(spec.arm for spec in taken))
    assert points_per_group(space, 18) == dict.fromkeys([*SOLVED, "zero_shot"], 1)
    assert len(trials_of(space, searched)) == 6 * 3
    alone = load_space("closed_form", searched.override(only()))
    assert (alone.baseline, alone.headline, alone.needs) == ("ridge", "discriminant", ())


def test_linear_probe_has_the_papers_grid_and_thins_lambda_to_the_same_budget() -> None:
    given_experiment = experiment()
    space = load_space("linear_probe", given_experiment)
    assert points_per_group(space) == {arm.name: 1 if arm.is_solved else 24 for arm in space.arms}
    assert {arm.name for arm in space.arms if arm.is_solved} == set(SOLVED)
    specs = [
        spec.experiment
        for spec in trials_of(space, given_experiment)
        if spec.arm == "unimodal" and not spec.experiment.seed
    ]
    searched = {(e.optim.lr, e.optim.weight_decay, e.train.batch_size, e.model.learnable_scale) for e in specs}
    assert len(searched) == 24
    uml = [spec.experiment for spec in trials_of(space, given_experiment) if spec.arm == "uml"]
    weights = {trial.mixing.loss_weight["names"] for trial in uml}
    assert weights <= {0.3, 0.5, 0.7, 1.0, 1.5}
    assert len(weights) > 2
    assert {trial.mixing.loss_weight["other"] for trial in uml} == {0.0}


def test_mixing_ratio_searches_what_is_named_and_the_baseline_as_many_learning_rates() -> None:
    space = load_space("mixing_ratio", experiment())
    assert points_per_group(space) == {"unimodal": 9, "uml": 9}
    rates = space.arms[0].grid["optim.lr"]
    assert (rates[0], rates[4], rates[-1]) == pytest.approx((1e-4, 1e-3, 1e-2))
    assert np.diff(np.log(rates)) == pytest.approx(np.full(8, np.log(10) / 4), rel=1e-2)
    every = experiment(tune_mixing=["loss_weight", "batch_ratio", "schedule", "warm_start"], train_max_steps=400)
    grid = load_space("mixing_ratio", every).arms[1].grid
    assert grid["mixing.schedule"] == ("joint", "alternate")
    corpora = ("photos", "names", "templates", "sounds")
    assert grid["mixing.warm_start"] == ({}, *({"corpus": corpus, "steps": 100} for corpus in corpora))
    own_grid = load_space("mixing_ratio", every).arms[0].grid
    assert own_grid["mixing.warm_start"] == ({}, {"corpus": "sounds", "steps": 100}), "idle in all of them alike"
    trials = trials_of(load_space("mixing_ratio", experiment(tune_mixing=["warm_start"])), experiment())
    assert len({(spec.arm, spec.key) for spec in trials}) == 2 * 5 * 3
    own = experiment(tune_per_corpus=True, tune_loss_weights=[0.1, 1.0], tune_mixing=["loss_weight"])
    assert set(load_space("mixing_ratio", own).arms[1].grid) == {
        f"mixing.loss_weight.{corpus}" for corpus in ("names", "templates", "sounds")
    }
    assert points_per_group(load_space("mixing_ratio", own)) == {"unimodal": 8, "uml": 8}


def test_modalities_are_all_subsets_and_only_those_with_the_head_s_corpus_may_start_from_it() -> None:
    arms = arms_of("modalities", experiment())
    subsets = [arm for arm in arms if not arm.endswith("_init")]
    assert len(subsets) == 2**3
    assert subsets[0] == "unimodal"
    assert {arm.removesuffix("_init") for arm in arms if arm.endswith("_init")} == {s for s in subsets if "names" in s}
    space = load_space("modalities", experiment())
    assert space.headline == "names+templates+sounds_init"
    weights = {arm.name: arm.overrides["mixing.loss_weight"] for arm in space.arms}
    assert weights["sounds"] == {"names": 0.0, "templates": 0.0, "sounds": 0.5, "other": 0.0}
    with pytest.raises(InputError, match="2 to 5 auxiliary corpora, but experiment pets has 1"):
        load_space("modalities", experiment().override(only("names")))


@pytest.mark.parametrize(
    "name", ["controls", "exchange_rate", "few_shot", "finetune", "mixing_ratio", "modalities", "text"]
)
def test_all_arms_have_the_same_target_batches_where_an_auxiliary_corpus_warms_up(name: str) -> None:
    warm = experiment(mixing_warm_start={"corpus": "names", "steps": 100}, train_max_steps=400)
    batches = set()
    for spec in trials_of(load_space(name, warm), warm):
        plan, steps = MixingPlan.from_experiment(spec.experiment), spec.experiment.train.max_steps
        start, stop = plan.sample_range("photos", 0)[0], plan.sample_range("photos", max(steps - 1, 0))[1]
        batches |= {stop - start} if steps else set()
    assert batches == {(400 if name == "text" else 300) * 32}


def test_text_compares_sources_amounts_and_the_average() -> None:
    arms = arms_of("text", experiment())
    names = [f"names_{amount}" for amount in ("1", "5", "15", "average", "all")]
    templates = [f"templates_{amount}" for amount in ("1", "5", "average", "all")]
    assert arms == ["unimodal", *names, *templates], "seven templates: no arm of 15"
    space = load_space("text", experiment())
    five = next(arm for arm in space.arms if arm.name == "templates_5").overrides
    assert five["data.auxiliary_shots"] == {"templates": 5}
    assert five["model.init_corpus"] == "templates"
    assert {name for name, weight in five["mixing.loss_weight"].items() if weight} == {"templates"}
    with pytest.raises(InputError, match="no auxiliary corpus of modality text; add corpora"):
        load_space("text", experiment().override(only("sounds")))
    with pytest.raises(InputError, match=r"tune\.auxiliary_shots holds 0"):
        load_space("text", experiment(tune_auxiliary_shots=[0, 1]))


def test_the_average_of_a_class_is_one_row() -> None:
    tables = {
        "photos": table(np.eye(4), ["a", "b"] * 2, ["train", "train", "val", "val"]),
        "names": table([[1, 0], [3, 2], [5, 5]], ["b", "b", "a"]),
    }
    given_experiment = experiment().override(only("names")).override({"data.auxiliary_shots": {"names": "average"}})
    rows = build_training_data(given_experiment, tables).train["names"]
    assert rows.labels.tolist() == [0, 1]
    assert rows.gathered().tolist() == [[5, 5], [2, 1]]
    shuffled = given_experiment.override({"corpora.names.control": "shuffled_labels"})
    assert sorted(build_training_data(shuffled, tables).train["names"].labels.tolist()) == [0, 1]


def space_of(*arms: Arm, grid: Mapping[str, tuple[Any, ...]] | None = None, **parts: Any) -> Space:
    return Space("?", arms, arms[0].name, arms[-1].name, (0,), grid=grid or {}, **parts)


OFF = Arm("unimodal", {"mixing.loss_weight": {"names": 0.0, "templates": 0.0, "sounds": 0.0, "other": 0.0}})


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (space_of(OFF, Arm("uml"), grid={"optim.lr": ()}), "the space is empty"),
        (space_of(OFF, Arm("uml"), grid={"optim.lrr": (1.0, 2.0)}), r"unknown key 'optim\.lrr'.*did you mean 'lr'"),
        (space_of(OFF, Arm("uml"), grid={"tune.seeds": (1, 2)}), r"key tune\.seeds: nothing that is trained changes"),
        (space_of(OFF, Arm("uml"), grid={"encoders.text.name": ("a", "b")}), "a sweep embeds nothing anew"),
        (space_of(OFF, Arm("uml"), grid={"embed.dtype": ("float16", "float32")}), "key embed.dtype: nothing"),
        (space_of(OFF, Arm("uml"), conditions={"store": ("a", "b")}), "key store: nothing"),
        (space_of(Arm("uml"), Arm("same", {"mixing.batch_ratio.names": 1.0})), "arms uml and same: nothing"),
        (space_of(Arm("uml"), Arm("unused", {"mixing.batch_ratio.other": 2.0})), "arms uml and unused: nothing"),
        (space_of(OFF, Arm("uml", grid={"optim.lr": (0.1, 0.2)})), "arm unimodal of the space has nothing to search"),
        (space_of(Arm("a"), OFF, grid={"mixing.batch_ratio.nmes": (1.0, 2.0)}), "names corpus 'nmes'"),
    ],
)
def test_what_is_refused_in_one_line(space: Space, part: str) -> None:
    with pytest.raises(InputError, match=part) as refusal:
        trials_of(space, experiment())
    assert "\n" not in str(refusal.value)


def test_a_key_that_matters_in_one_arm_is_enough() -> None:
    """λ = 0 does not feel the batch ratio, and an untrained head not the learning rate; other arms do."""
    untrained = Arm("zero_shot", {"train.max_steps": 0})
    grid = {"mixing.batch_ratio.names": (1.0, 2.0), "optim.lr": (0.1, 0.2)}
    assert len(trials_of(space_of(OFF, untrained, Arm("uml"), grid=grid), experiment())) == 3 * 4


def test_unequal_budgets_are_allowed_where_a_space_says_so() -> None:
    space = space_of(OFF, Arm("uml", grid={"optim.lr": (0.1, 0.2)}), equal_budget=False)
    assert Counter(spec.arm for spec in trials_of(space, experiment())) == {"unimodal": 1, "uml": 2}


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3), st.integers(2, 40))
def test_budgets_are_equal_whatever_the_grids(own: int, other: int, seeds: int, max_trials: int) -> None:
    arms = (
        Arm("unimodal", OFF.overrides, {"optim.lr": tuple(0.1 + index for index in range(own))}),
        Arm("uml", {}, {"optim.lr": tuple(0.1 + index for index in range(other))}),
    )
    space = Space("?", arms, "unimodal", "uml", tuple(range(seeds)))
    if max_trials < 2 * seeds:
        with pytest.raises(InputError, match=f"needs at least {2 * seeds}"):
            trials_of(space, experiment(), max_trials=max_trials)
        return
    specs = trials_of(space, experiment(), max_trials=max_trials)
    counts = Counter((spec.arm, spec.experiment.seed) for spec in specs)
    assert set(counts.values()) == {min(own, other, max_trials // (2 * seeds))}
    assert len(specs) <= max_trials
    for arm in ("unimodal", "uml"):
        rates = {seed: {s.experiment.optim.lr for s in specs if s.group == (arm, "", seed)} for seed in range(seeds)}
        assert len({frozenset(values) for values in rates.values()}) == 1, "the same points for every seed"


OWN = """from tune_spaces import Arm, Space
def build(e):
    arms = (Arm('a'), Arm('b'), Arm('wrong', role='control', controls='b'))
    return Space('?', arms, 'a', 'b', (0,), """


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("x = 1", "has no function build"),
        (
            OWN.replace("Arm('a')", "Arm('a', says=None)") + "needs=('wrong',))",
            r"arms\.0\.says is None; Input should be",
        ),
        ("def build(experiment): return 3", "returned a int; expected a Space"),
        (
            "from tune_spaces import Space\ndef build(e): return Space('?', (), 'a', 'b', (0,))",
            "baseline 'a', which is not",
        ),
        (
            "from tune_spaces import Arm, Space\ndef build(e): return Space('?', (Arm('a'), Arm('a')), 'a', 'a', (0,))",
            "two arms named 'a'",
        ),
        ("from tune_spaces import Arm, Space\ndef build(e): return Space('?', (Arm('a'),), 'a', 'a', ())", "no seeds"),
        ("import nowhere", "cannot be read"),
        (f"{OWN}needs=('wrnog',))", "needs 'wrnog', which is no control of b .did you mean 'wrong'"),
        (f"{OWN}needs=('a',))", r"needs 'a', which is no control of b.*Arm\(..., role=\"control\", controls=\"b\"\)"),
        (f"{OWN}needs='wrong')", r"give a tuple of arms: needs=\('wrong',\)"),
        (
            OWN.replace("'control'", "'contrl'") + ")",
            "role 'contrl' .did you mean 'control'.*; roles are",
        ),
        (OWN.replace("controls='b'", "controls='c'") + ")", "names 'c' as controls of arm wrong"),
    ],
)
def test_files_of_the_user_s_own_that_are_refused(tmp_path: Path, source: str, part: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        load_space(str(file), experiment())


def example_spaces() -> dict[str, str]:
    """The sources of a user's space that are there to be copied."""
    document = (ROOT / "docs" / "tune.md").read_text("utf-8")
    (of_docs,) = re.findall(r"```python\n(.*?def build.*?)```", document, re.DOTALL)
    of_package = textwrap.dedent("    " + str(tune_spaces.__doc__).partition("    ")[2])
    file = (ROOT / "examples" / "own_space.py").read_text("utf-8")
    return {"docs": of_docs, "package": of_package, "file": file}


@pytest.mark.parametrize("name", ["docs", "package", "file"])
def test_a_space_to_copy_is_one_that_may_claim_a_gain(tmp_path: Path, name: str) -> None:
    source = example_spaces()[name]
    assert len(source.splitlines()) < 30
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    tree = experiment().model_dump(mode="json")
    tree |= {"corpora": {"photos": tree["corpora"]["photos"], "captions": TEXT}, "mixing": {}}
    given_experiment = parse_experiment(tree)
    space = load_space(str(tmp_path / "mine.py"), given_experiment)
    assert (space.baseline, space.headline, space.needs) == ("alone", "together", ("wrong",))
    assert trials_of(space, given_experiment)


def test_trained_settings_know_defaults_and_what_is_switched_off() -> None:
    base = trained_settings(experiment())
    same = [{"mixing.loss_weight.names": 1.0}, {"mixing.batch_ratio.other": 3.0}, {"tracking.artifacts": "x"}]
    other = [{"mixing.loss_weight.names": 0.9}, {"mixing.loss_weight.other": 1.0}, {"optim.lr": 0.5}, {"seed": 3}]
    assert all(trained_settings(experiment().override(values)) == base for values in same)
    assert all(trained_settings(experiment().override(values)) != base for values in other)


def test_a_solver_has_neither_rate_nor_batch() -> None:
    solver = experiment(optim_name="lbfgs", model_learnable_scale=False)
    same = [{"optim.lr": 0.5}, {"optim.warmup_steps": 9}, {"train.batch_size": 8}]
    assert all(trained_settings(solver.override(values)) == trained_settings(solver) for values in same)
    assert trained_settings(solver.override({"optim.weight_decay": 0.5})) != trained_settings(solver)


def test_overrides_are_not_written_into() -> None:
    """A section, and then a key inside it: what a space holds stays as it was for the next trial."""
    weights = {"names": 0.5, "other": 0.0}
    changed = experiment().override({"mixing.loss_weight": weights, "mixing.loss_weight.names": 0.1})
    assert changed.mixing.loss_weight == {"names": 0.1, "other": 0.0}
    assert weights == {"names": 0.5, "other": 0.0}


def test_weight_transfer_claims_what_is_trained_or_what_is_frozen() -> None:
    space = load_space("weight_transfer", experiment(**TRANSFER))
    assert (space.baseline, space.headline) == ("scratch", "transferred")
    trials = trials_of(space, experiment(**TRANSFER))
    asked = {spec.arm: spec.experiment.model.transfer for spec in trials}
    assert asked["scratch"] is None
    assert {name: (each.freeze_steps, each.control) for name, each in asked.items() if each} == {
        "transferred": (0, "none"),
        "shuffled": (0, "shuffled"),
        "frozen_then_trained": (3200, "none"),
        "scratch_frozen": ("all", "scratch"),
        "transferred_frozen": ("all", "none"),
        "shuffled_frozen": ("all", "shuffled"),
    }
    frozen = load_space("weight_transfer", experiment(**TRANSFER).override({"model.transfer.freeze_steps": "all"}))
    assert (frozen.baseline, frozen.headline) == ("scratch_frozen", "transferred_frozen")
    for steps, expected in ((70, 70), ("all", 3200)):
        given_experiment = experiment(**TRANSFER).override({"model.transfer.freeze_steps": steps})
        arms = {arm.name: arm.overrides for arm in load_space("weight_transfer", given_experiment).arms}
        assert arms["frozen_then_trained"]["model.transfer.freeze_steps"] == expected
    with pytest.raises(InputError, match=r"experiment pets has no model.transfer; give one"):
        load_space("weight_transfer", experiment())


def test_finetune_compares_frozen_partial_and_full_with_and_without_the_data() -> None:
    space = load_space("finetune", experiment())
    specs = {spec.arm: spec.experiment for spec in trials_of(space, experiment())}
    backbones = {name: (trial.model.backbone, trial.model.trained_blocks) for name, trial in specs.items()}
    trained = dict.fromkeys(("unimodal", "unimodal_init", "uml_init", "shuffled_init"), ("finetune", None))
    assert backbones == {
        **dict.fromkeys(("linear_probe", "zero_shot", *SOLVED), ("frozen", None)),
        **trained,
        **{f"frozen_{name}": ("frozen", None) for name in ("unimodal", "uml_init")},
        **{f"partial_{name}": ("partial", 2) for name in ("unimodal", "uml_init")},
        **{f"lora_{name}": ("lora", None) for name in ("unimodal", "uml_init")},
        "uml_init_trained_text": ("finetune", None),
    }
    assert specs["uml_init_trained_text"].model.trained_auxiliaries == ("names", "templates")
    assert {trial.model.trained_auxiliaries for name, trial in specs.items() if "text" not in name} == {()}
    for pair in ("frozen", "partial", "lora"):
        weights = [specs[f"{pair}_{name}"].loss_weight("names") for name in ("unimodal", "uml_init")]
        assert weights == [0.0, 1.0]
    own = experiment(**{"model_backbone": "partial", "model_trained_blocks": 5})
    blocks = {spec.experiment.model.trained_blocks for spec in trials_of(load_space("finetune", own), own)}
    assert blocks == {None, 5}
    own = experiment(model_backbone="lora", model_lora={"rank": 3}, train_compile=True)
    ranks = {
        (spec.arm.split("_")[0], spec.experiment.model.lora.rank)
        for spec in trials_of(load_space("finetune", own), own)
    }
    assert {rank for arm, rank in ranks if arm == "lora"} == {3}
    assert {rank for arm, rank in ranks if arm != "lora"} == {LowRankConfig().rank}, "that of no adapters"
    sounds_only = experiment().override(only("sounds"))
    assert "uml_init_trained_text" not in arms_of("finetune", sounds_only)
    sounds = experiment().override({"target": "sounds", "mixing.loss_weight": {"other": 0}})
    space = load_space("finetune", sounds)
    with pytest.raises(InputError, match="needs an audio encoder of source transformers"):
        trials_of(space, sounds)


def test_probe_and_zero_shot_leave_a_trained_encoder_frozen_in_every_space() -> None:
    tuned = experiment(model_backbone="finetune", model_drop_path=0.1)
    arms = {spec.arm: spec.experiment for spec in trials_of(load_space("controls", tuned), tuned)}
    without_steps = {"linear_probe", "zero_shot", *SOLVED}
    assert {name for name, trial in arms.items() if trial.model.backbone == "frozen"} == without_steps
    frozen, slower = experiment(), experiment(optim_backbone_lr=1e-6, pictures_augment=False)
    assert trained_settings(frozen) == trained_settings(slower), "of a frozen encoder nothing of it counts"
    assert trained_settings(tuned) != trained_settings(tuned.override({"optim.backbone_lr": 1e-6}))


def test_a_space_searches_the_rank_and_rates_that_a_backbone_does_not_use_count_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "ranks.py"
    file.write_text(
        '"""Which rank?"""\n'
        "from tune_spaces import Arm, Space\n"
        "def build(experiment):\n"
        '    arms = (Arm("unimodal", {"mixing.loss_weight.names": 0}), Arm("uml"))\n'
        '    return Space("Which rank?", arms, "unimodal", "uml", (0,), grid={"model.lora.rank": (2, 8)})\n',
        encoding="utf-8",
    )
    adapted = experiment(model_backbone="lora")
    ranks = {(spec.arm, spec.experiment.model.lora.rank) for spec in trials_of(load_space(str(file), adapted), adapted)}
    assert ranks == {(arm, rank) for arm in ("unimodal", "uml") for rank in (2, 8)}
    assert adapted.model.lora.scale == adapted.override({"model.lora.rank": 2}).model.lora.scale == 2
    assert adapted.override({"model.lora.alpha": 4}).model.lora.scale == 0.5
    for backbone, unused, used in (("lora", "backbone_lr", "lora_lr"), ("finetune", "lora_lr", "backbone_lr")):
        one = experiment(model_backbone=backbone)
        assert trained_settings(one) == trained_settings(one.override({f"optim.{unused}": 1e-6}))
        assert trained_settings(one) != trained_settings(one.override({f"optim.{used}": 1e-6}))


@pytest.mark.parametrize("classes", ["target", "union"])
def test_an_unlabelled_pile_has_an_arm_without_text_and_takes_part_in_no_other_alternative(classes: str) -> None:
    pile = {"corpora.pile": {"modality": "image", "format": "folder", "path": "pile", "role": "unlabelled"}}
    given_experiment = experiment().override({**pile, "data.classes": classes})
    arms = {arm.name: given_experiment.override(arm.overrides) for arm in load_space("few_shot", given_experiment).arms}
    with_pile = {name for name, each in arms.items() if each.unlabelled_corpora and each.model.head != "paper"}
    assert with_pile == {"pile", "prior", "shuffled_prior"}
    assert not arms["pile"].active_auxiliaries
    assert "pile" not in arms_of("few_shot", experiment())


@pytest.mark.parametrize("name", ["controls", "few_shot", "finetune", "linear_probe"])
def test_a_bridge_has_an_arm_that_differs_from_prior_in_the_bridges_names_alone(name: str) -> None:
    ready = {"modality": "vector", "format": "embeddings", "path": "classifier.parquet", "role": "bridge"}
    bridged = experiment().override({"corpora.imagenet": ready})
    (arm,) = set(arms_of(name, bridged)) - set(arms_of(name, experiment()))
    space = load_space(name, bridged)
    assert (arm, space.arm(arm).controls) == ("shuffled_bridge", "prior")
    assert arm in {spec.arm for spec in trials_of(space, bridged)}
    control, prior = (bridged.override(space.arm(each).overrides) for each in (arm, "prior"))
    assert control.override({"corpora.imagenet.control": "none"}) == prior
    assert control.corpora["imagenet"].control == "shuffled_labels"
    assert (has_control(control), has_control(prior)) == (True, False), "it is never shipped"
