"""Does unpaired data still help when the target's encoder is trained as well?

The arms of a verdict are fine-tuned: the baseline, the method, and its control with shuffled labels, beside a plain
linear probe on the frozen encoder. Three pairs more show what training the encoder does to the gain: frozen_* leaves it
as it is, partial_* trains its last blocks (model.trained_blocks, else 2), lora_* trains low-rank adapters in its blocks
(model.lora, at the rate optim.lora_lr). Where a text encoder can be trained too, arm *_trained_text does so; the paper
finds it better frozen (docs/method.md, Supervised). Steps, target batches, search budget and seeds are the same in
every arm. Frozen arms see no crops or flips: they train on stored embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from uml_core.config import TRAINABLE_TEXT, Experiment
from uml_core.sweeps.arms import FROZEN, deciding_space, headline_suffix, standard_arms
from uml_core.sweeps.space import Arm, Facts, Space, related_auxiliaries

TRAINED_BLOCKS = 2


def build(experiment: Experiment) -> Space:
    """The arms for an experiment, whatever its model.backbone is."""
    related, suffix = related_auxiliaries(experiment), headline_suffix(experiment)
    model: dict[str, Any] = {
        **{"model.backbone": "finetune", "model.trained_blocks": None, "model.lora": {}},
        "model.trained_auxiliaries": [],
    }
    blocks = experiment.model.trained_blocks or TRAINED_BLOCKS
    partial = {**model, "model.backbone": "partial", "model.trained_blocks": blocks}
    adapters = experiment.model.lora.model_dump(mode="json")
    lora = {**model, "model.backbone": "lora", "model.lora": adapters}
    arms = standard_arms(experiment)
    headline = f"uml{suffix}"
    initialised = [_with(arms["unimodal_init"], model)] if suffix else []
    method = _with(arms[headline], model)
    chosen = [
        replace(
            arms["linear_probe"],
            says="the target alone on its frozen encoder, without projection: a plain linear probe.",
        ),
        replace(
            _with(arms["unimodal"], model),
            says="the matched baseline: encoder and head are trained on the target alone (λ = 0), from a random head.",
        ),
        *initialised,
        replace(method, facts=replace(method.facts, trained="all of it", against="unimodal")),
        _with(arms[f"shuffled{suffix}"], model),
        *(arms[name] for name in ("ridge", "discriminant", "logistic", "zero_shot", "prior", "shuffled_prior")),
        *(arms[name] for name in arms if name == "shuffled_bridge"),
    ]
    for prefix, backbone, trained, says in (
        ("frozen", FROZEN, "nothing", "the encoder left as it is"),
        ("partial", partial, "its last blocks", "its last blocks alone trained"),
        ("lora", lora, "low-rank adapters in it", "low-rank adapters alone trained"),
    ):
        for name, facts in (("unimodal", Facts()), (headline, Facts(trained=trained, against=f"{prefix}_unimodal"))):
            changes: dict[str, Any] = {"says": f"as {name}, with {says}.", "facts": facts}
            chosen.append(replace(_with(arms[name], backbone), name=f"{prefix}_{name}", **changes))
    texts = trainable_texts(experiment, related)
    if texts:
        chosen.append(
            replace(
                _with(arms[headline], {**model, "model.trained_auxiliaries": texts}),
                name=f"{headline}_trained_text",
                says=f"as {headline}, with the text encoder trained as well.",
                facts=Facts(trained="text encoder too, against frozen", against=headline),
            )
        )
    return deciding_space(
        experiment,
        question=f"Do {' and '.join(related)} still help {experiment.target} when its encoder is trained as well?",
        arms=chosen,
    )


def trainable_texts(experiment: Experiment, corpora: tuple[str, ...]) -> list[str]:
    """The corpora whose text encoder can be trained: raw sentences, and an encoder of ours or transformers."""
    found = []
    for name in corpora:
        encoder = experiment.encoder_of(name)
        is_text = experiment.corpora[name].modality == "text" and encoder is not None
        if is_text and encoder.source in TRAINABLE_TEXT and experiment.data.auxiliary_shots.get(name) != "average":
            found.append(name)
    return found


def _with(arm: Arm, overrides: dict[str, Any]) -> Arm:
    return replace(arm, overrides={**arm.overrides, **overrides})
