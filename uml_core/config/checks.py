"""The checks across an experiment's sections: what is allowed alone, and not together.

In: an `Experiment` whose sections are each valid. Out: nothing, or a ValueError with one line: the setting, what was
given, what is allowed, how to mend it. They run in this order, and the first mistake is the one reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from uml_core.config.sections import Sections
from uml_core.config.training import LowRankConfig
from uml_core.errors import listing, nearest

# By modality of the target, sources of encoders that can be trained.
TRAINABLE_TARGETS = {"image": ("timm", "transformers", "package"), "audio": ("transformers",)}
TRAINABLE_TEXT = ("transformers", "package")  # sources of text encoders whose pooling is ours
OTHER_ROLES = {
    "shifted": "a shifted test set (role: shifted)",
    "bridge": "a bridge (role: bridge)",
    "unlabelled": "an unlabelled pile (role: unlabelled)",
}
NEED = "<need>"  # where a message names what is missing


def _require(needs: Mapping[str, bool], message: str) -> None:
    """Raise ValueError with the first need that is not met, named in place of NEED in a message."""
    for need, is_met in needs.items():
        if not is_met:
            raise ValueError(message.replace(NEED, need))


def _names_refer_to_corpora(experiment: Sections) -> None:
    known = list(experiment.corpora)
    references: dict[str, list[str | None]] = {
        "target": [experiment.target],
        "model.init_corpus": [experiment.model.init_corpus],
        "model.trained_auxiliaries": list(experiment.model.trained_auxiliaries),
        "mixing.warm_start.corpus": [experiment.mixing.warm_start.corpus],
        "mixing.loss_weight": list(experiment.mixing.loss_weight),
        "mixing.batch_ratio": list(experiment.mixing.batch_ratio),
        "data.auxiliary_shots": list(experiment.data.auxiliary_shots),
    }
    for setting, names in references.items():
        for name in names:
            if name is not None and name not in experiment.corpora:
                raise ValueError(f"{setting} names corpus '{name}'; corpora are {listing(known)}{nearest(name, known)}")
            role = "train" if name is None else experiment.corpora[name].role
            if role != "train":
                raise ValueError(f"{setting} names corpus '{name}', which is {OTHER_ROLES[role]}")
    for setting in ("mixing.loss_weight", "mixing.batch_ratio", "data.auxiliary_shots"):
        if experiment.target in references[setting]:
            raise ValueError(
                f"{setting} names the target '{experiment.target}', whose weight and ratio are always 1, and whose "
                "rows per class are data.shots; name auxiliary corpora only "
                f"({listing(experiment.auxiliaries) or 'there are none'})"
            )
    if experiment.corpora[experiment.target].control != "none":
        raise ValueError(
            f"corpora.{experiment.target}.control is set on the target; controls are for auxiliary corpora"
        )
    if experiment.mixing.warm_start.steps and experiment.mixing.warm_start.corpus is None:
        raise ValueError("mixing.warm_start.steps is set without mixing.warm_start.corpus; name the corpus")


def _corpora_with_a_role_are_of_the_target(experiment: Sections) -> None:
    target = experiment.corpora[experiment.target]
    if experiment.unlabelled_corpora and (experiment.objective, experiment.model.backbone) != ("supervised", "frozen"):
        raise ValueError(
            f"corpora.{experiment.unlabelled_corpora[0]} has role: unlabelled, from which heads in closed form alone "
            "learn; it needs objective=supervised and model.backbone=frozen"
        )
    for name in (*experiment.shifted_corpora, *experiment.unlabelled_corpora):
        corpus = experiment.corpora[name]
        if corpus.modality != target.modality or experiment.encoder_of(name) != experiment.encoder_of(
            experiment.target
        ):
            raise ValueError(
                f"corpora.{name} is {OTHER_ROLES[corpus.role]} and needs the modality and the encoder of "
                f"the target {experiment.target}"
            )
        if corpus.control != "none":
            raise ValueError(
                f"corpora.{name}.control is set on {OTHER_ROLES[corpus.role]}; controls are for auxiliaries"
            )


def _only_auxiliaries_lack_labels(experiment: Sections) -> None:
    for name in experiment.agreeing:
        if name not in experiment.auxiliaries:
            what = "the target" if name == experiment.target else OTHER_ROLES[experiment.corpora[name].role]
            raise ValueError(
                f"corpora.{name}.missing_labels is set on {what}; it is for auxiliary corpora (unlabelled rows of the "
                "target's modality are a corpus of role unlabelled)"
            )


def _bridges_lead_from_a_text_to_the_target(experiment: Sections) -> None:
    described = {experiment.encoder_of(name) for name in experiment.auxiliaries}
    for name in experiment.bridge_texts:
        if experiment.encoder_of(name) not in described:
            raise ValueError(
                f"corpora.{name} has role bridge, and neither the target's encoder nor that of an auxiliary corpus; "
                "give it one of them: rows of other classes have the target's, texts about those classes an auxiliary's"
            )
    if experiment.bridge_texts and not experiment.bridges:
        raise ValueError(
            f"corpora.{experiment.bridge_texts[0]} has role bridge, and no corpus of role bridge has rows of other "
            "classes in the target's space; add one, of the target's encoder or of format embeddings"
        )


def _settings_fit_the_objective(experiment: Sections) -> None:
    train = experiment.train
    if train.accumulate > 1 and train.batch_size < train.num_workers * train.accumulate:
        raise ValueError(
            f"train.accumulate is {train.accumulate} with train.batch_size {train.batch_size} and train.workers "
            f"{train.num_workers}; a batch has at most one part a sample: lower train.accumulate"
        )
    if train.gradient_cosine and train.accumulate > 1:
        raise ValueError(
            f"train.gradient_cosine is true with train.accumulate {train.accumulate}; it compares gradients of a whole "
            "batch: set train.accumulate=1, or remove it"
        )
    needs = {
        "feed.keep other than stream, because sequences stay in memory": experiment.feed.keep != "stream",
        "train.label_smoothing=0, because it reads no class labels": not train.label_smoothing,
        "train.gradient_cosine=false, because there is no shared head": not train.gradient_cosine,
        "train.batch_size of at least train.workers, one sequence each": train.batch_size >= train.num_workers,
        "no data.auxiliary_shots, because it reads no auxiliary labels": not experiment.data.auxiliary_shots,
        "data.classes=target, for the same reason": experiment.data.classes == "target",
        "no corpus of role bridge, for the same reason": not experiment.bridges,
    }
    if experiment.objective == "self_supervised":
        _require(needs, f"objective is self_supervised, which needs {NEED}; or set objective=supervised")


def _a_trained_backbone_can_be_trained(experiment: Sections) -> None:
    backbone, blocks = experiment.model.backbone, experiment.model.trained_blocks
    if (blocks is not None) != (backbone == "partial"):
        raise ValueError(
            f"model.trained_blocks is {blocks} with model.backbone {backbone}; it says how many of the last blocks "
            "model.backbone=partial trains: set both or neither"
        )
    if backbone != "lora" and experiment.model.lora != LowRankConfig():
        raise ValueError(
            f"model.lora is set with model.backbone {backbone}; it says which adapters model.backbone=lora trains: "
            "set that, or remove model.lora"
        )
    if backbone == "frozen":
        if experiment.train.compile:
            raise ValueError(
                "train.compile is true with model.backbone frozen, where no encoder is trained; set "
                "model.backbone=finetune, or remove it (encoders.image.compile compiles a frozen one for embed)"
            )
        for setting in ("trained_auxiliaries", "drop_path"):
            if value := getattr(experiment.model, setting):
                raise ValueError(
                    f"model.{setting} is {value} with model.backbone frozen, where no encoder is trained; "
                    "set model.backbone=finetune, or remove it"
                )
        return
    target, encoder = experiment.corpora[experiment.target], experiment.encoder_of(experiment.target)
    sources = TRAINABLE_TARGETS.get(target.modality, ())
    needs = {
        f"objective supervised, not {experiment.objective}": experiment.objective == "supervised",
        f"a target of pictures or sounds, not of modality {target.modality}": target.modality in TRAINABLE_TARGETS,
        f"raw pictures or sounds, not format {target.format}": encoder is not None,
        f"an {target.modality} encoder of source {listing(sources)}": encoder is None or encoder.source in sources,
        "an encoder without pooling=tokens": encoder is None or encoder.pooling != "tokens",
        "train.compile=false, because clips differ in length": not (
            experiment.train.compile and target.modality == "audio"
        ),
        "train.gradient_cosine=false": not experiment.train.gradient_cosine,
        "train.batch_size of at least train.workers": experiment.train.batch_size >= experiment.train.num_workers,
        "shifted test sets as extra splits of the target, not role: shifted": not experiment.shifted_corpora,
    }
    _require(needs, f"model.backbone is {backbone}, which needs {NEED}; or set model.backbone=frozen")


def _shards_have_holders(experiment: Sections) -> None:
    needs = {
        "train.workers of at least 2, one a shard": experiment.train.num_workers > 1,
        f"objective supervised, not {experiment.objective}": experiment.objective == "supervised",
        "model.backbone=finetune, partial or lora: a head alone is small": experiment.model.backbone != "frozen",
        "train.compile=false": not experiment.train.compile,
    }
    if experiment.train.sharding != "none":
        _require(needs, f"train.sharding is {experiment.train.sharding}, which needs {NEED}; or set it to none")


def _a_transfer_has_a_trunk(experiment: Sections) -> None:
    transfer, encoder = experiment.model.transfer, experiment.encoder_of(experiment.target)
    if transfer is None or experiment.objective == "self_supervised":
        return
    needs = {
        f"model.backbone=finetune, not {experiment.model.backbone}": experiment.model.backbone == "finetune",
        "encoders.image of source timm": encoder is not None and encoder.source == "timm",
    }
    _require(needs, f"model.transfer starts blocks of a trained trunk, which needs {NEED}; or remove it")


def _trained_auxiliaries_can_be_trained(experiment: Sections) -> None:
    for name in experiment.model.trained_auxiliaries:
        corpus, encoder = experiment.corpora[name], experiment.encoder_of(name)
        needs = {
            "an auxiliary corpus, not the target": name != experiment.target,
            f"text, not modality {corpus.modality}": corpus.modality == "text",
            f"raw sentences, not format {corpus.format}": encoder is not None,
            "a text encoder of source transformers or package": encoder is None or encoder.source in TRAINABLE_TEXT,
            "an encoder without pooling=tokens": encoder is None or encoder.pooling != "tokens",
            "no noise in place of its embeddings (control)": corpus.control != "noise",
            "no data.auxiliary_shots average": experiment.data.auxiliary_shots.get(name) != "average",
        }
        _require(needs, f"model.trained_auxiliaries names {name}, and training its encoder needs {NEED}")


def _every_corpus_has_its_turn(experiment: Sections) -> None:
    train, warm_start = experiment.train, experiment.mixing.warm_start
    if not experiment.num_steps:
        return
    if warm_start.steps >= train.max_steps:
        others = "the target" if warm_start.corpus != experiment.target else "any other corpus"
        raise ValueError(
            f"mixing.warm_start.steps is {warm_start.steps} with train.max_steps {train.max_steps}, which leaves no "
            f"step to {others}; lower it"
        )
    for name in experiment.auxiliaries:
        steps = train.max_steps - (warm_start.steps if warm_start.corpus != name else 0)
        ratio = experiment.batch_ratio(name)
        if experiment.is_active(name) and ratio * train.batch_size * steps < 1:
            raise ValueError(
                f"mixing.batch_ratio.{name} is {ratio:g}, of which {steps} steps of {train.batch_size} target samples "
                "make not one sample; raise it, or set it to 0"
            )


def _a_head_in_closed_form_has_frozen_embeddings(experiment: Sections) -> None:
    head, train = experiment.model.head, experiment.train
    needs = {
        "objective=supervised": experiment.objective == "supervised",
        "model.backbone=frozen": experiment.model.backbone == "frozen",
        "train.workers=1, because there is nothing to distribute": train.num_workers == 1 and train.min_workers is None,
        "train.twin=false: space controls compares it with every other head": not train.twin,
        "train.gradient_cosine=false: there is no gradient": not train.gradient_cosine,
        "optim.name=adamw: it has a solution without a solver": experiment.optim.name == "adamw",
    }
    if head != "paper":
        _require(needs, f"model.head is {head}, which needs {NEED}; or set model.head=paper")


def _a_solver_has_a_convex_problem(experiment: Sections) -> None:
    if experiment.optim.name != "lbfgs":
        return
    mixing, train = experiment.mixing, experiment.train
    needs = {
        "objective=supervised": experiment.objective == "supervised",
        "model.backbone=frozen": experiment.model.backbone == "frozen",
        "model.learnable_scale=false": not experiment.model.learnable_scale,
        "mixing.schedule=joint": mixing.schedule == "joint",
        "no mixing.warm_start": not mixing.warm_start.steps,
        "mixing.batch_ratio of 0 or 1, because a step takes all rows": set(mixing.batch_ratio.values()) <= {0, 1},
        "loss weights that are numbers": all(isinstance(each, float) for each in mixing.loss_weight.values()),
        "no optim.clip_norm": experiment.optim.clip_norm is None,
        "optim.ema_decay=0": not experiment.optim.ema_decay,
        "train.accumulate=1": train.accumulate == 1,
        "feed.keep other than stream, because a step takes all rows": experiment.feed.keep != "stream",
        "a train.precision other than bfloat16": train.precision != "bfloat16",
    }
    _require(needs, f"train with optim.name=lbfgs needs {NEED}; or set optim.name=adamw")


CHECKS: tuple[Callable[[Sections], None], ...] = (
    _names_refer_to_corpora,
    _corpora_with_a_role_are_of_the_target,
    _only_auxiliaries_lack_labels,
    _bridges_lead_from_a_text_to_the_target,
    _settings_fit_the_objective,
    _a_trained_backbone_can_be_trained,
    _a_head_in_closed_form_has_frozen_embeddings,
    _shards_have_holders,
    _a_transfer_has_a_trunk,
    _trained_auxiliaries_can_be_trained,
    _every_corpus_has_its_turn,
    _a_solver_has_a_convex_problem,
)
