"""One experiment, validated as a whole: its sections, the checks across them, reading it from a file.

In: a YAML file and dotted `key=value` overrides. Out: one `Experiment`, validated as a whole, whose hash names every
folder and run made from it. Nothing changes an `Experiment`; derived ones go through `Experiment.override`.

    from uml_core.config import load_experiment
    experiment = load_experiment("examples/demo.yaml", ["mixing.batch_ratio.names=2"])
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError, model_validator

from uml_core.config.base import Name, Settings
from uml_core.config.corpora import (
    READY_FORMATS,
    CorpusConfig,
    EmbedConfig,
    EncoderConfig,
    EncodersConfig,
    TrackingConfig,
)
from uml_core.config.dotted import flatten, hash_of, set_dotted
from uml_core.config.errors import describe_validation_error
from uml_core.config.evaluation import EvaluationConfig
from uml_core.config.training import (
    DataConfig,
    FeedConfig,
    LossWeightSchedule,
    LowRankConfig,
    MixingConfig,
    ModelConfig,
    OptimConfig,
    PicturesConfig,
    SequenceModelConfig,
    TrainConfig,
    TuneConfig,
)
from uml_core.errors import InputError, listing, nearest

TRAINABLE_TEXT = ("transformers", "package")  # sources of text encoders whose pooling is ours


class Experiment(Settings):
    """One experiment file, resolved and validated."""

    name: Name
    seed: int = 0
    store: str
    tracking: TrackingConfig = TrackingConfig()
    target: str
    corpora: Mapping[Name, CorpusConfig]
    encoders: EncodersConfig = EncodersConfig()
    objective: Literal["supervised", "self_supervised"] = "supervised"
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    sequence_model: SequenceModelConfig = SequenceModelConfig()
    mixing: MixingConfig = MixingConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    pictures: PicturesConfig = PicturesConfig()
    feed: FeedConfig = FeedConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _names_refer_to_corpora(self) -> Self:
        known = list(self.corpora)
        references: dict[str, list[str | None]] = {
            "target": [self.target],
            "model.init_corpus": [self.model.init_corpus],
            "model.trained_auxiliaries": list(self.model.trained_auxiliaries),
            "mixing.warm_start.corpus": [self.mixing.warm_start.corpus],
            "mixing.loss_weight": list(self.mixing.loss_weight),
            "mixing.batch_ratio": list(self.mixing.batch_ratio),
            "data.auxiliary_shots": list(self.data.auxiliary_shots),
        }
        for setting, names in references.items():
            for name in names:
                if name is not None and name not in self.corpora:
                    raise ValueError(
                        f"{setting} names corpus '{name}'; corpora are {listing(known)}{nearest(name, known)}"
                    )
                if name in self.shifted_corpora:
                    raise ValueError(f"{setting} names corpus '{name}', which is a shifted test set (role: shifted)")
        for setting in ("loss_weight", "batch_ratio"):
            if self.target in getattr(self.mixing, setting):
                raise ValueError(
                    f"mixing.{setting} names the target '{self.target}', whose weight and ratio are always 1; "
                    f"name auxiliary corpora only ({listing(self.auxiliaries) or 'there are none'})"
                )
        if self.target in self.data.auxiliary_shots:
            raise ValueError(
                f"data.auxiliary_shots names the target '{self.target}', whose rows per class are data.shots; "
                f"name auxiliary corpora only ({listing(self.auxiliaries) or 'there are none'})"
            )
        if self.corpora[self.target].control != "none":
            raise ValueError(f"corpora.{self.target}.control is set on the target; controls are for auxiliary corpora")
        if self.mixing.warm_start.steps and self.mixing.warm_start.corpus is None:
            raise ValueError("mixing.warm_start.steps is set without mixing.warm_start.corpus; name the corpus")
        return self

    @model_validator(mode="after")
    def _shifted_corpora_are_of_the_target(self) -> Self:
        target = self.corpora[self.target]
        for name in self.shifted_corpora:
            corpus = self.corpora[name]
            if corpus.modality != target.modality or self.encoder_of(name) != self.encoder_of(self.target):
                raise ValueError(
                    f"corpora.{name} is a shifted test set (role: shifted) and needs the modality and the encoder of "
                    f"the target {self.target}"
                )
            if corpus.control != "none":
                raise ValueError(f"corpora.{name}.control is set on a shifted test set; controls are for auxiliaries")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_objective(self) -> Self:
        parts = self.train.workers * self.train.accumulate
        if self.train.accumulate > 1 and self.train.batch_size < parts:
            raise ValueError(
                f"train.accumulate is {self.train.accumulate} with train.batch_size {self.train.batch_size} and "
                f"train.workers {self.train.workers}; a batch has at most one part a sample: lower train.accumulate"
            )
        if self.objective == "supervised":
            return self
        if self.feed.keep == "stream":
            raise ValueError(
                "feed.keep is stream, and sequences stay in memory; set feed.keep=auto, or objective=supervised"
            )
        if self.train.label_smoothing:
            raise ValueError("train.label_smoothing spreads class labels; set objective=supervised, or remove it")
        if self.train.gradient_cosine:
            raise ValueError("train.gradient_cosine compares gradients on the shared head; set objective=supervised")
        if self.train.batch_size < self.train.workers:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size} with train.workers {self.train.workers}; "
                "every worker needs a sequence in a step"
            )
        if self.data.auxiliary_shots:
            raise ValueError(
                "data.auxiliary_shots counts rows per class, and objective self_supervised reads no auxiliary labels; "
                "remove it"
            )
        return self

    @model_validator(mode="after")
    def _a_trained_backbone_can_be_trained(self) -> Self:
        backbone, blocks = self.model.backbone, self.model.trained_blocks
        if (blocks is not None) != (backbone == "partial"):
            raise ValueError(
                f"model.trained_blocks is {blocks} with model.backbone {backbone}; it says how many of the last blocks "
                "model.backbone=partial trains: set both or neither"
            )
        if backbone != "lora" and self.model.lora != LowRankConfig():
            raise ValueError(
                f"model.lora is set with model.backbone {backbone}; it says which adapters model.backbone=lora trains: "
                "set that, or remove model.lora"
            )
        if backbone == "frozen":
            if self.train.compile:
                raise ValueError(
                    "train.compile is true with model.backbone frozen, where no encoder is trained; set "
                    "model.backbone=finetune, or remove it (encoders.image.compile compiles a frozen one for embed)"
                )
            for setting in ("trained_auxiliaries", "drop_path"):
                if value := getattr(self.model, setting):
                    raise ValueError(
                        f"model.{setting} is {value} with model.backbone frozen, where no encoder is trained; "
                        "set model.backbone=finetune, or remove it"
                    )
            return self
        target, encoder = self.corpora[self.target], self.encoder_of(self.target)
        needs = {
            f"objective supervised, not {self.objective}": self.objective == "supervised",
            f"a target of pictures, not of modality {target.modality}": target.modality == "image",
            f"raw pictures, not format {target.format}": encoder is not None,
            "an image encoder of source timm, transformers or package": encoder is None or encoder.source != "module",
            "an encoder without pooling=tokens": encoder is None or encoder.pooling != "tokens",
            "train.gradient_cosine=false": not self.train.gradient_cosine,
            "train.batch_size of at least train.workers": self.train.batch_size >= self.train.workers,
            "shifted test sets as extra splits of the target, not role: shifted": not self.shifted_corpora,
        }
        for need, is_met in needs.items():
            if not is_met:
                raise ValueError(f"model.backbone is {backbone}, which needs {need}; or set model.backbone=frozen")
        return self

    @model_validator(mode="after")
    def _shards_have_holders(self) -> Self:
        needs = {
            "train.workers of at least 2, one a shard": self.train.workers > 1,
            f"objective supervised, not {self.objective}": self.objective == "supervised",
            "model.backbone=finetune, partial or lora: a head alone is small": self.model.backbone != "frozen",
            "train.compile=false": not self.train.compile,
        }
        for need, is_met in needs.items():
            if self.train.sharding != "none" and not is_met:
                raise ValueError(f"train.sharding is {self.train.sharding}, which needs {need}; or set it to none")
        return self

    @model_validator(mode="after")
    def _a_transfer_has_a_trunk(self) -> Self:
        transfer, encoder = self.model.transfer, self.encoder_of(self.target)
        if transfer is None or self.objective == "self_supervised":
            return self
        needs = {
            f"model.backbone=finetune, not {self.model.backbone}": self.model.backbone == "finetune",
            "encoders.image of source timm": encoder is not None and encoder.source == "timm",
        }
        for need, is_met in needs.items():
            if not is_met:
                raise ValueError(f"model.transfer starts blocks of a trained trunk, which needs {need}; or remove it")
        return self

    @model_validator(mode="after")
    def _trained_auxiliaries_can_be_trained(self) -> Self:
        for name in self.model.trained_auxiliaries:
            corpus, encoder = self.corpora[name], self.encoder_of(name)
            needs = {
                "an auxiliary corpus, not the target": name != self.target,
                f"text, not modality {corpus.modality}": corpus.modality == "text",
                f"raw sentences, not format {corpus.format}": encoder is not None,
                "a text encoder of source transformers or package": encoder is None or encoder.source in TRAINABLE_TEXT,
                "an encoder without pooling=tokens": encoder is None or encoder.pooling != "tokens",
                "no noise in place of its embeddings (control)": corpus.control != "noise",
                "no data.auxiliary_shots average": self.data.auxiliary_shots.get(name) != "average",
            }
            for need, is_met in needs.items():
                if not is_met:
                    raise ValueError(f"model.trained_auxiliaries names {name}, and training its encoder needs {need}")
        return self

    @model_validator(mode="after")
    def _a_solver_has_a_convex_problem(self) -> Self:
        if self.optim.name != "lbfgs":
            return self
        mixing, train = self.mixing, self.train
        needs = {
            "objective=supervised": self.objective == "supervised",
            "model.backbone=frozen": self.model.backbone == "frozen",
            "model.learnable_scale=false": not self.model.learnable_scale,
            "mixing.schedule=joint": mixing.schedule == "joint",
            "no mixing.warm_start": not mixing.warm_start.steps,
            "loss weights that are numbers": all(isinstance(each, float) for each in mixing.loss_weight.values()),
            "no optim.clip_norm": self.optim.clip_norm is None,
            "optim.ema_decay=0": not self.optim.ema_decay,
            "train.accumulate=1": train.accumulate == 1,
            "feed.keep other than stream, because a step takes all rows": self.feed.keep != "stream",
            "a train.precision other than bfloat16": train.precision != "bfloat16",
        }
        for need, is_met in needs.items():
            if not is_met:
                raise ValueError(f"train with optim.name=lbfgs needs {need}; or set optim.name=adamw")
        return self

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the corpora that train beside the target, in the file's order."""
        return tuple(name for name in self.corpora if name != self.target and name not in self.shifted_corpora)

    @property
    def shifted_corpora(self) -> tuple[str, ...]:
        """Names of the corpora that are shifted test sets of the target."""
        return tuple(name for name, corpus in self.corpora.items() if corpus.role == "shifted")

    @property
    def config_hash(self) -> str:
        """12 hex digits over every resolved setting: the one key of run folders and the tag `uml.config_hash`."""
        return hash_of(self.model_dump(mode="json"))

    def encoder_of(self, corpus: str) -> EncoderConfig | None:
        """Return the corpus's encoder: its own, else its modality's; None for ready embeddings."""
        config = self.corpora[corpus]
        if config.format in READY_FORMATS:
            return None
        modality_encoder: EncoderConfig = getattr(self.encoders, config.modality)
        return config.encoder or modality_encoder

    def loss_weight(self, corpus: str) -> float:
        """Return the weight of a corpus in the summed loss (the paper's α or λ; the target's is 1).

        Of a weight that follows a schedule, its largest: 0 means that the corpus takes no part at any step.
        """
        setting = self.loss_weight_setting(corpus)
        return max(setting.start, setting.end) if isinstance(setting, LossWeightSchedule) else setting

    def loss_weight_setting(self, corpus: str) -> float | LossWeightSchedule:
        """Return the weight of a corpus as it is set: a number, or its schedule."""
        if corpus == self.target:
            return 1.0
        return 0.0 if corpus in self.shifted_corpora else self.mixing.loss_weight.get(corpus, 1.0)

    def batch_ratio(self, corpus: str) -> float:
        """Return the samples of a corpus per target sample in a step (the target's is 1)."""
        return 1.0 if corpus == self.target else self.mixing.batch_ratio.get(corpus, 1.0)

    def override(self, values: Mapping[str, Any]) -> Experiment:
        """Return a new experiment with dotted keys replaced, e.g. `{"optim.lr": 1e-4}`; validated as a whole.

        Raises:
            InputError: a key is unknown or a value is not allowed.
        """
        tree = self.model_dump(mode="json")
        for key, value in values.items():
            set_dotted(tree, key, copy.deepcopy(value))  # a later, deeper key must not write into what was given
        return parse_experiment(tree)

    def unimodal_twin(self) -> Experiment:
        """Return the matched baseline: same model shape, steps and target batches; λ = 0 and a random head."""
        weights = {f"mixing.loss_weight.{name}": 0.0 for name in self.auxiliaries}
        return self.override({**weights, "model.head_init": "random", "mixing.warm_start": {}, "train.twin": False})

    def flattened(self) -> dict[str, Any]:
        """Return every setting under its dotted key (MLflow's parameters)."""
        return flatten(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """Return the resolved experiment as YAML; loading it again gives an equal experiment."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_experiment(tree: Mapping[str, Any]) -> Experiment:
    """Validate a nested mapping. Raises InputError with one line naming the first wrong setting."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, Experiment)) from None


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply `key=value` overrides (values are read as YAML).

    Raises:
        InputError: the file is missing, is not YAML, or a setting is unknown or not allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"experiment file {file} does not exist; give the path of a YAML file (see examples/)")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} holds a {type(tree).__name__}; expected a mapping of settings (see examples/)")
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise InputError(f"override '{item}' is not key=value; for example optim.lr=1e-4")
        set_dotted(tree, key, _parse_value(item, text))
    return parse_experiment({str(key): value for key, value in tree.items()})


def _parse_value(item: str, text: str) -> Any:
    # OmegaConf's loader, not yaml's: it reads 1e-4 as a number, and so does the file.
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}" if text else "value: ''"))["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"override '{item}' has an unreadable value: {' '.join(str(error).split())}") from None
