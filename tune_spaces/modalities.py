"""Which of the auxiliary corpora help, alone and together? Does each further one add something?

An arm for every subset of the related auxiliary corpora; corpora outside the subset stay in the model at λ = 0, so that
all arms train equally many parameters. Every subset starts from the same random head; where the experiment starts it
from an auxiliary corpus, the subsets that hold that corpus have a second arm, SUBSET_init. The paper's claim that more
modalities never hurt is broken in its own table (docs/method.md, Three and more modalities): each subset is compared
with the baseline.
"""

from __future__ import annotations

import itertools

from uml_core.config import Experiment
from uml_core.errors import InputError
from uml_core.models.shared_head import head_init_corpus
from uml_core.sweeps.arms import RANDOM_HEAD, TEXT_HEAD, headline_suffix, weights_of, without_auxiliaries
from uml_core.sweeps.space import Arm, Facts, Space, lr_grid, related_auxiliaries, seeds_of, shots_conditions

MAX_AUXILIARIES = 5


def build(experiment: Experiment) -> Space:
    related = related_auxiliaries(experiment)
    if not 2 <= len(related) <= MAX_AUXILIARIES:
        raise InputError(
            f"space modalities compares all subsets of 2 to {MAX_AUXILIARIES} auxiliary corpora, but experiment "
            f"{experiment.name} has {len(related)}; add or remove corpora, or use space controls"
        )
    subsets = [subset for size in range(1, len(related) + 1) for subset in itertools.combinations(related, size)]
    baseline = "the matched baseline: every corpus stays in the model at λ = 0, and the head starts at random."
    arms = [Arm("unimodal", without_auxiliaries(experiment), says=baseline, facts=Facts(corpora=()))]
    for subset in subsets:
        # Without the corpus of a warm start, an arm is idle in it: all have the same target batches.
        cotrained = {"mixing.loss_weight": weights_of(experiment, subset)}
        says = f"{' and '.join(subset)} at λ > 0, the other auxiliary corpora at λ = 0; the head starts"
        heads = [("", RANDOM_HEAD, "at random")]
        if headline_suffix(experiment) and head_init_corpus(experiment) in subset:
            heads.append(("_init", TEXT_HEAD, "from its class means"))
        for suffix, head, start in heads:
            facts = Facts(corpora=subset, initialised=bool(suffix))
            arms.append(Arm(f"{_name(subset)}{suffix}", {**cotrained, **head}, says=f"{says} {start}.", facts=facts))
    return Space(
        question=f"Which of {' and '.join(related)} help {experiment.target}, alone and together?",
        arms=tuple(arms),
        baseline="unimodal",
        headline=f"{_name(related)}{headline_suffix(experiment)}",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
        needs=(),  # which corpus helps is asked here; space controls tells what it is that helps
    )


def _name(subset: tuple[str, ...]) -> str:
    """A name for every subset, with corpora in brackets that would read as another arm's name."""
    return "+".join(f"({name})" if name == "unimodal" or name.endswith("_init") else name for name in subset)
