"""Does the unpaired data help, and is it what the data says that helps?

Every arm has the same data, steps, target batches and search budget, over paired seeds (PAPER.md section 7):
{random, text} initialisation × {λ = 0, λ > 0}, and the same with labels shuffled, with noise in place of the auxiliary
embeddings, and with text about something else where the experiment has such a corpus (control: unrelated).
"""

from __future__ import annotations

from typing import Any

from tune_spaces.space import Arm, Space, lr_grid, related_auxiliaries, seeds_of, shots_conditions
from uml_core.config import Experiment


def build(experiment: Experiment) -> Space:
    """Return the arms of the controls for an experiment."""
    related = related_auxiliaries(experiment)
    unrelated = [name for name in experiment.auxiliaries if name not in related]
    on = {f"mixing.loss_weight.{name}": experiment.loss_weight_setting(name) or 1.0 for name in related}
    off = {f"mixing.loss_weight.{name}": 0.0 for name in related}
    off_unrelated = {f"mixing.loss_weight.{name}": 0.0 for name in unrelated}
    random_head = {"model.head_init": "random"}
    text_head = {"model.head_init": "zero_shot"}

    def control(kind: str) -> dict[str, Any]:
        return {f"corpora.{name}.control": kind for name in related}

    cotrained = {**on, **off_unrelated}
    alone = {**off, **off_unrelated, "mixing.warm_start": {}}
    arms = [
        Arm("linear_probe", _target_only(experiment)),
        Arm("unimodal", {**alone, **random_head}),
        Arm("unimodal_init", {**alone, **text_head}),
        Arm("uml", {**cotrained, **random_head}),
        Arm("uml_init", {**cotrained, **text_head}),
        Arm("shuffled", {**cotrained, **random_head, **control("shuffled_labels")}),
        Arm("shuffled_init", {**cotrained, **text_head, **control("shuffled_labels")}),
        Arm("noise", {**cotrained, **random_head, **control("noise")}),
        Arm("noise_init", {**cotrained, **text_head, **control("noise")}),
        Arm("zero_shot", {**alone, **text_head, "train.max_steps": 0}),
    ]
    if unrelated:
        swapped = {**off, **{f"mixing.loss_weight.{name}": 1.0 for name in unrelated}, "mixing.warm_start": {}}
        arms += [
            Arm("unrelated", {**swapped, **random_head}),
            Arm("unrelated_init", {**swapped, **text_head, "model.init_corpus": unrelated[0]}),
        ]
    return Space(
        question=f"Do {' and '.join(related)} help {experiment.target}, and is it what they say that helps?",
        arms=tuple(arms),
        baseline="unimodal",
        headline="uml_init" if experiment.model.head_init == "zero_shot" else "uml",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
    )


def _target_only(experiment: Experiment) -> dict[str, Any]:
    """Return the overrides of a plain linear probe: no other corpus, and so no projection."""
    target = experiment.corpora[experiment.target].model_dump(mode="json")
    return {
        "corpora": {experiment.target: target},
        "mixing.loss_weight": {},
        "mixing.batch_ratio": {},
        "mixing.warm_start": {},
        "data.auxiliary_shots": {},
        "model.init_corpus": None,
        "model.shared_width": None,
        "model.head_init": "random",
    }
