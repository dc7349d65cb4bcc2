"""Which way of writing about the classes helps: templates or descriptions, how many sentences, or their average?

An arm for every auxiliary text corpus and amount: 1, 5 or 15 sentences per class (or tune.auxiliary_shots), the average
of all of them as one row, and all of them (docs/method.md, Supervised). A corpus takes part alone; where the
experiment starts the head from text, the same sentences start it. Amounts that a templates corpus does not have are
left out; of other corpora, the report shows how many rows took part. For templates beside descriptions, give the
experiment both: corpora.templates={modality: text, format: templates}.
"""

from __future__ import annotations

from uml_core.config import Experiment
from uml_core.config.template_sets import templates_of
from uml_core.errors import InputError
from uml_core.sweeps.arms import weights_of, without_auxiliaries
from uml_core.sweeps.space import Arm, Facts, Space, lr_grid, related_auxiliaries, seeds_of, shots_conditions

AMOUNTS = (1, 5, 15)


def build(experiment: Experiment) -> Space:
    corpora = [name for name in related_auxiliaries(experiment) if experiment.corpora[name].modality == "text"]
    if not corpora:
        raise InputError(
            f"space text compares sentences about classes, but experiment {experiment.name} has no auxiliary corpus of "
            "modality text; add corpora.templates={modality: text, format: templates}, and embed"
        )
    if 0 in experiment.tune.auxiliary_shots:
        raise InputError("tune.auxiliary_shots holds 0; space text needs at least 1 (arm unimodal has none)")
    amounts = tuple(sorted(set(experiment.tune.auxiliary_shots or AMOUNTS)))
    baseline = Arm(
        "unimodal",
        {**without_auxiliaries(experiment), "mixing.warm_start": {}},
        says="no sentences: λ = 0 and a random head, the projection kept.",
        facts=Facts(corpora=(), sentences="none"),
    )
    return Space(
        question=f"Which sentences of {' or '.join(corpora)} help {experiment.target} most, and how many of them?",
        arms=(baseline, *(arm for corpus in corpora for arm in _arms(experiment, corpus, amounts))),
        baseline="unimodal",
        headline=f"{corpora[0]}_all",
        seeds=seeds_of(experiment),
        conditions=shots_conditions(experiment),
        grid=lr_grid(experiment),
        needs=(),  # which sentences help is asked here; space controls tells whether it is what they say
    )


def _arms(experiment: Experiment, corpus: str, amounts: tuple[int, ...]) -> list[Arm]:
    config = experiment.corpora[corpus]
    # Sentences per class of a templates corpus; others would have to be read.
    most = len(templates_of(config.templates, config.template_set)) if config.format == "templates" else None
    fewer = [amount for amount in amounts if most is None or amount < most]
    chosen: list[int | str | None] = [*fewer, "average", None] if most != 1 else [None]
    others = {name: count for name, count in experiment.data.auxiliary_shots.items() if name != corpus}
    alone = {
        "mixing.loss_weight": weights_of(experiment, (corpus,)),
        "mixing.warm_start": {},
        "model.init_corpus": corpus,
        "model.trained_auxiliaries": [],  # averages are of stored embeddings, and all amounts are trained alike
    }
    words: dict[int | str | None, str] = {
        None: "all sentences",
        "average": "one row per class, the mean of all its sentences",
    }
    return [
        Arm(
            f"{corpus}_{amount or 'all'}",
            {**alone, "data.auxiliary_shots": others | ({} if amount is None else {corpus: amount})},
            says=f"{words.get(amount, f'at most {amount} sentences per class')} of {corpus} alone.",
            facts=Facts(corpora=(corpus,), sentences=str(amount or "all")),
        )
        for amount in chosen
    ]
