"""The one table of which key of an experiment decides what, and under which other settings it counts.

In: an experiment. Out: the settings that decide one thing: what lies in the store, which of its rows are used, which
model is trained, which heads may be trained as one batched model. Whatever else needs to know which settings matter
asks here: sweeps that refuse arms which train the same model, packs of heads, sources of raw rows that several runs
share, the warnings of `train`, and the settings reference (`python -m uml_core.config`).

A key that decides none of these changes pace, place, messages or what is measured after training.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from uml_core.config.corpora import EncodersConfig
from uml_core.config.sections import Sections
from uml_core.errors import listing

Decision = Literal["store", "rows", "model", "pack"]
# store: which rows and embeddings the store holds. rows: which of them are trained, validated and tested on.
# model: the trained model, beyond rounding. pack: must be equal in heads that are trained as one batched model.
DECISIONS: tuple[Decision, ...] = ("store", "rows", "model", "pack")


class Condition(NamedTuple):
    """Other settings under which alone a key counts, in words that follow "it counts with"."""

    words: str
    holds: Callable[[Sections], bool]


SUPERVISED = Condition("objective supervised", lambda experiment: experiment.objective == "supervised")
SEQUENCES = Condition("objective self_supervised", lambda experiment: experiment.objective == "self_supervised")
MASKED = Condition(
    "sequence_model.task masked_token", lambda experiment: experiment.sequence_model.task == "masked_token"
)
TRAINED_ENCODER = Condition(
    "a trained encoder (model.backbone)", lambda experiment: experiment.model.backbone != "frozen"
)
STEPS = Condition("steps to train (model.head paper, train.max_steps)", lambda experiment: not experiment.takes_no_step)
OWN_RATE = Condition("model.backbone other than lora", lambda experiment: experiment.model.backbone != "lora")
ADAPTERS = Condition("model.backbone lora", lambda experiment: experiment.model.backbone == "lora")
PICTURES = Condition(
    "a target of pictures", lambda experiment: experiment.corpora[experiment.target].modality != "audio"
)
AUGMENTED = Condition("pictures.augment", lambda experiment: experiment.pictures.augment)
ADAMW = Condition("optim.name adamw", lambda experiment: experiment.optim.name == "adamw")
WARM_UP = Condition("optim.warmup_steps", lambda experiment: experiment.optim.warmup_steps > 0)


class Use(NamedTuple):
    """What a key decides, where all conditions hold; nothing where `decides` is empty."""

    decides: frozenset[str]
    when: tuple[Condition, ...]


def _uses(section: str, names: str, *decides: Decision, when: tuple[Condition, ...] = ()) -> dict[str, Use]:
    prefix = f"{section}." if section else ""
    return {f"{prefix}{name}": Use(frozenset(decides), when) for name in names.split()}


_ENCODERS = ("corpora.*.encoder", *(f"encoders.{modality}" for modality in EncodersConfig.model_fields))
_ENCODER_KEYS = "source name pooling weights image_size depth heads max_length max_seconds"

USES: Mapping[str, Use] = {
    **_uses("", "name"),
    **_uses("", "seed", "model"),
    **_uses("", "store", "store"),
    **_uses("", "target objective", "rows", "model", "pack"),
    **_uses("tracking", "uri artifacts"),
    **_uses("corpora.*", "modality format path root columns split templates template_set names dataset field", "store"),
    **_uses("corpora.*", "control role", "rows", "model"),
    **_uses("corpora.*", "missing_labels", "rows", "model", when=(SUPERVISED,)),
    **{key: use for encoder in _ENCODERS for key, use in _uses(encoder, _ENCODER_KEYS, "store").items()},
    **{key: use for encoder in _ENCODERS for key, use in _uses(encoder, "compile").items()},
    **_uses("embed", "dtype precision", "store"),
    **_uses("embed", "batch_size part_rows slices use_gpu actors decoders max_rejected"),
    **_uses("model", "backbone head", "model", "pack"),
    **_uses("model", "trained_blocks trained_auxiliaries drop_path", "model", when=(TRAINED_ENCODER,)),
    **_uses("model.lora", "rank alpha dropout targets", "model", when=(ADAPTERS,)),
    # Heads of one pack may start anywhere, from whatever corpus: only their shapes must be equal.
    **_uses("model", "head_init init_corpus scale_init", "model", when=(SUPERVISED,)),
    **_uses("model", "learnable_scale normalize shared_width", "model", "pack", when=(SUPERVISED,)),
    **_uses("model.transfer", "source blocks freeze_steps control", "model"),
    **_uses("sequence_model", "width layers heads feedforward dropout positions task", "model", when=(SEQUENCES,)),
    **_uses("sequence_model", "max_tokens", "rows", "model", when=(SEQUENCES,)),
    **_uses("sequence_model", "standardize", "model", when=(SEQUENCES,)),
    **_uses("sequence_model", "masked_share", "model", when=(SEQUENCES, MASKED)),
    # Of corpora that take part (`Sections.is_active`); packs compare weights where they decide who has an update.
    **_uses("mixing", "loss_weight", "model"),
    **_uses("mixing", "batch_ratio schedule warm_start.corpus warm_start.steps", "model", "pack"),
    **_uses("data", "classes bridge_overlap shots val_shots auxiliary_shots subset", "rows", "model", "pack"),
    **_uses("data.labels", "normalise map", "rows", "model", "pack"),
    **_uses("data", "val_fraction test_fraction", "rows", "model", "pack"),
    **_uses("data", "split_seed", "rows", "model"),
    **_uses("optim", "name clip_norm ema_decay", "model", "pack"),
    **_uses("optim", "weight_decay", "model"),
    **_uses("optim", "lr schedule warmup_steps", "model", when=(ADAMW,)),
    **_uses("optim", "warmup_lr", "model", when=(ADAMW, WARM_UP)),
    **_uses("optim", "backbone_lr", "model", when=(TRAINED_ENCODER, OWN_RATE)),
    **_uses("optim", "lora_lr", "model", when=(ADAPTERS,)),
    **_uses("optim", "layer_decay", "model", when=(TRAINED_ENCODER,)),
    **_uses("pictures", "keep memory_gib", when=(TRAINED_ENCODER,)),
    **_uses("pictures", "augment", "model", when=(TRAINED_ENCODER, PICTURES)),
    **_uses("pictures", "min_crop", "model", when=(TRAINED_ENCODER, PICTURES, AUGMENTED)),
    **_uses("feed", "keep memory_gib cache", when=(SUPERVISED,)),
    **_uses("train", "max_steps eval_every patience precision label_smoothing", "model", "pack"),
    **_uses("train", "batch_size", "model", "pack", when=(ADAMW,)),
    # Workers, shards and parts of a batch make the same update, up to the order in which numbers are added.
    **_uses("train", "workers min_workers use_gpu", when=(STEPS,)),
    **_uses("cluster", "wait_s placement embed_on train_on"),
    **_uses("train", "sharding accumulate compile"),
    **_uses("train", "gradient_cosine report_every_s report_share keep_checkpoints twin seeds"),
    **_uses("tune", "seeds shots auxiliary_shots lr mixing per_corpus loss_weights batch_ratios warm_starts search"),
    **_uses("tune", "objectives stopping gpus_per_trial max_concurrent_trials pack max_failed"),
    **_uses("evaluation", "evaluators shots seeds corruptions corruption_rows class_maps"),
}


class Leaf(NamedTuple):
    """A key that holds a value, not a section. `pattern` has * for what the user names, as `USES` has."""

    key: str
    pattern: str
    value: Any
    field: FieldInfo


def leaves(
    section: type[BaseModel], tree: Mapping[str, Any] | None = None, key: str = "", pattern: str = ""
) -> Iterator[Leaf]:
    """Yield every key of a section: with its value in a dumped tree, or without one as the experiment file may have it.

    Sections that are not there (`encoder: null`) have no keys. Keys and patterns begin with `key` and `pattern`.
    """
    for name, (field, inner, is_mapping) in _fields(section).items():
        value = None if tree is None else tree[name]
        if inner is None:
            yield Leaf(key + name, pattern + name, value, field)
            continue
        children = {"*": value} if tree is None else value or {}
        for child, values in (children if is_mapping else {"": value}).items():
            if tree is None or values is not None:
                dot, star = (f".{child}", ".*") if child else ("", "")
                yield from leaves(inner, values, f"{key}{name}{dot}.", f"{pattern}{name}{star}.")


@functools.cache  # a sweep asks for each of hundreds of trials
def _fields(section: type[BaseModel]) -> dict[str, tuple[FieldInfo, type[BaseModel] | None, bool]]:
    return {name: (field, *section_in(field.annotation)) for name, field in section.model_fields.items()}


def section_in(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field holds (None: a value), and whether it holds several by name."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = [section_in(kind) for kind in inner if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else (None, False)
    if origin is Mapping:
        return section_in(inner[1])[0], True
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return (annotation if is_section else None), False  # type: ignore[return-value]


def deciding(experiment: Sections, decision: Decision) -> dict[str, Any]:
    """The settings that decide one thing in this experiment, by dotted key, as JSON values."""
    tree = experiment.model_dump(mode="json")
    return {
        leaf.key: leaf.value
        for leaf in leaves(Sections, tree)
        if decision in USES[leaf.pattern].decides and not _unmet(experiment, leaf)
    }


def unused_settings(experiment: Sections) -> list[str]:
    """One line for every setting with another value than its default, and every role, that training does not use.

    A warning, not an error: one file has the settings of several backbones, for the arms of a sweep or a key on the
    command line.
    """
    lines = []
    for leaf in leaves(Sections, experiment.model_dump()):
        unmet = _unmet(experiment, leaf)
        if unmet and leaf.value != leaf.field.get_default(call_default_factory=True):
            lines.append(
                f"{leaf.key} is {leaf.value} and not used: it counts with {unmet[0].words} alone; "
                "set that, or remove it"
            )
    for names, role, heads in (
        ((*experiment.bridges, *experiment.bridge_texts), "bridge", ("prior",)),
        (experiment.unlabelled_corpora, "unlabelled", ("prior", "discriminant", "ridge")),
    ):
        if experiment.model.head not in heads:
            lines += [
                f"corpora.{name} has role {role} and is not used: it counts with model.head {listing(heads)} alone"
                for name in names
            ]
    return lines


def _unmet(experiment: Sections, leaf: Leaf) -> list[Condition]:
    return [condition for condition in USES[leaf.pattern].when if not condition.holds(experiment)]
