"""The experiment file as frozen typed models: the only place that holds defaults.

In: a YAML file and dotted `key=value` overrides. Out: one `Experiment`, validated as a whole, whose hash names every
folder and run made from it. Nothing changes an `Experiment`; derived ones go through `Experiment.override`.

    from uml_core.config import load_experiment
    experiment = load_experiment("examples/demo.yaml", ["mixing.batch_ratio.names=2"])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uml_core.config_errors import describe_validation_error
from uml_core.corpora.template_sets import PLACEHOLDER, TEMPLATE_SETS
from uml_core.errors import InputError, listing, nearest

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction01 = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]

Modality = Literal["image", "text", "audio", "vector"]
CorpusFormat = Literal["folder", "table", "descriptors", "templates", "webdataset", "embeddings"]
CorpusControl = Literal["none", "shuffled_labels", "noise", "unrelated"]


class Settings(BaseModel):
    """Base of every section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(Settings):
    """Which frozen encoder turns raw rows into embeddings; everything but `compile` enters the store's fingerprint."""

    source: Literal["package", "timm", "transformers", "module"]
    name: str  # module: "package.module:factory", your own encoder (uml_core/encoders/base.py)
    pooling: Literal["auto", "mean", "cls", "last", "tokens"] = "auto"  # tokens: a sequence a row, for self_supervised
    weights: str | None = None  # a local directory or file, for machines without a model hub
    image_size: PositiveCount | None = None  # None: the model's own
    max_length: PositiveCount = 256  # text: tokens kept
    max_seconds: Positive = 10.0  # audio: longer clips are cut
    compile: bool = False  # torch.compile: a minute at the start, for long runs on a GPU


class TrackingConfig(Settings):
    """Where MLflow's runs and artifacts go. A relative sqlite path is taken from the working directory."""

    uri: str = "sqlite:///runs/mlflow.db"
    artifacts: str = "runs/artifacts"


class CorpusConfig(Settings):
    """One corpus. Labels, splits and ids are its own: nothing links its rows to another corpus."""

    modality: Modality
    format: CorpusFormat
    path: str | None = None  # local path or URI; table, webdataset and embeddings take a folder or pattern of files too
    root: str | None = None  # format table: the folder its column path starts in; None: the table's own
    split: Annotated[str, Field(min_length=1)] = "train"  # of rows that name none
    templates: tuple[str, ...] = ()  # format templates: sentences in which {class} stands for the class
    template_set: str | None = None  # format templates: published ones by name; None: "a photo of a {class}."
    names: Mapping[str, str] = Field(default_factory=dict)  # format templates: readable names; others: "_" becomes " "
    encoder: EncoderConfig | None = None
    # A control replaces what the corpus says and keeps everything else equal (PAPER.md section 7):
    # shuffled_labels permutes the labels over rows; noise replaces embeddings by Gaussian noise of the same mean and
    # scale; unrelated hands each of the corpus's own classes to a target class drawn by lot.
    control: CorpusControl = "none"

    @model_validator(mode="after")
    def _format_fits(self) -> Self:
        if self.modality == "vector" and self.format != "embeddings":
            raise ValueError(f"modality vector has no raw input, so format must be embeddings, not {self.format}")
        if self.format in ("descriptors", "templates") and self.modality != "text":
            raise ValueError(f"format {self.format} holds sentences, so modality must be text, not {self.modality}")
        if self.path is None and self.format != "templates":
            raise ValueError(f"key 'path' is missing; format {self.format} needs the place of the corpus")
        if self.path is not None and self.format == "templates":
            raise ValueError("path is set on format templates, which reads no file; remove it")
        belongs = {"root": "table", "templates": "templates", "template_set": "templates", "names": "templates"}
        for setting, format_ in belongs.items():
            if getattr(self, setting) and self.format != format_:
                raise ValueError(f"{setting} is set on format {self.format}; it belongs to format {format_}")
        return self

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> Self:
        if self.templates and self.template_set:
            raise ValueError("templates and template_set are both set; give one of them")
        if self.template_set is not None and self.template_set not in TEMPLATE_SETS:
            raise ValueError(
                f"template_set is '{self.template_set}'; allowed: {listing(TEMPLATE_SETS, limit=20)}"
                f"{nearest(self.template_set, TEMPLATE_SETS)}"
            )
        for template in self.templates:
            if PLACEHOLDER not in template:
                raise ValueError(f"templates has '{template}'; every template needs {PLACEHOLDER} for the class")
        return self


class EncodersConfig(Settings):
    """The encoder of each modality; a corpus may override with its own `encoder`. Defaults come from pip packages."""

    image: EncoderConfig = EncoderConfig(source="package", name="efficientnet_lite0")
    text: EncoderConfig = EncoderConfig(source="package", name="minilm_l6")
    audio: EncoderConfig = EncoderConfig(source="package", name="logmel")


class EmbedConfig(Settings):
    """How corpora are embedded. `part_rows` is the unit of resuming: rows embedded and renamed into place at once."""

    batch_size: Literal["auto"] | PositiveCount = "auto"  # rows a forward pass; auto: what is fast and fits into memory
    part_rows: PositiveCount = 256  # for millions of rows take some thousands: fewer files
    actors: Literal["auto"] | PositiveCount = "auto"  # hold the encoder; auto: one a GPU, else one a core (up to 4)
    decoders: Literal["auto"] | Count = (
        "auto"  # tasks that decode beside the actors; auto: other cores beside GPUs, else 0
    )
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    max_rejected: Fraction01 = 0.05  # share of unreadable rows past which the step fails


class ModelConfig(Settings):
    """The shared-weight model: projections into one width, one head for all corpora."""

    backbone: Literal["frozen"] = "frozen"
    head_init: Literal["zero_shot", "random"] = "zero_shot"
    init_corpus: str | None = None  # None: the first auxiliary text corpus, else the first auxiliary corpus
    learnable_scale: bool = True
    scale_init: Positive = 1.0
    normalize: bool = False  # L2-normalise embeddings first (for CLIP encoders, with scale_init 100)
    shared_width: PositiveCount | None = None  # None: the width of the corpus that initialises the head


class WarmStartConfig(Settings):
    """The first `steps` of max_steps train on `corpus` alone (the target or an auxiliary corpus)."""

    corpus: str | None = None
    steps: Count = 0


class MixingConfig(Settings):
    """How corpora are mixed. A corpus that is not named has weight 1 and ratio 1."""

    loss_weight: Mapping[str, NonNegative] = Field(default_factory=dict)
    batch_ratio: Mapping[str, NonNegative] = Field(default_factory=dict)
    # joint: one update on the weighted sum; alternate: one update per corpus in turn. Either way a step holds one
    # target batch, so the number of target samples seen does not depend on the schedule.
    schedule: Literal["joint", "alternate"] = "joint"
    warm_start: WarmStartConfig = WarmStartConfig()


class DataConfig(Settings):
    """Splits and few-shot subsets, all drawn by `split_seed`; subsets are nested."""

    shots: PositiveCount | None = None  # train samples per class; validation gets min(4, shots); None is all
    auxiliary_shots: Mapping[str, PositiveCount] = Field(default_factory=dict)  # rows per class; not named: all
    split_seed: int = 0
    val_fraction: Fraction01 = 0.2  # taken off train where the target has no val split
    test_fraction: Fraction01 = 0.0  # taken off train where the target has no test split; 0 takes none


class OptimConfig(Settings):
    """AdamW with linear warm-up from `warmup_lr`, then cosine to zero (or constant)."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Count = 50
    warmup_lr: NonNegative = 1e-5


class TrainConfig(Settings):
    """Length, evaluation and resources of a training run. max_steps 0 evaluates the untrained model."""

    max_steps: Count = 12800
    batch_size: PositiveCount = 32  # target samples per step over all workers (the global batch size)
    eval_every: PositiveCount = 100
    patience: PositiveCount = 10  # evaluations without a better validation result before stopping
    workers: PositiveCount = 1
    use_gpu: Literal["auto"] | bool = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast on a GPU, float32 on a CPU
    gradient_cosine: bool = False  # at every evaluation, the angle between corpora's gradients on the shared head
    report_every_s: Positive = 10.0  # metrics and checkpoints are reported by wall time: a report may block for 2 s
    twin: bool = False  # also train the matched unimodal baseline and print the difference


class TuneConfig(Settings):
    """What every sweep has in common; spaces in tune_spaces/ say the rest."""

    seeds: PositiveCount = 3  # paired: seed s draws the same few-shot subset and target batches in every arm
    shots: tuple[PositiveCount, ...] = ()  # conditions compared apart; empty: data.shots alone
    auxiliary_shots: tuple[Count, ...] = ()  # space exchange_rate: rows per class (0: none); empty: the space's own
    lr: tuple[Positive, ...] = ()  # searched in every arm, selected on validation; empty: optim.lr alone
    max_failed: Fraction01 = 0.2  # share of failed trials past which the sweep fails


class Experiment(Settings):
    """One experiment file, resolved and validated."""

    name: Name
    seed: int = 0
    store: str
    tracking: TrackingConfig = TrackingConfig()
    target: str
    corpora: Mapping[Name, CorpusConfig]
    encoders: EncodersConfig = EncodersConfig()
    objective: Literal["supervised"] = "supervised"
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    mixing: MixingConfig = MixingConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _names_refer_to_corpora(self) -> Self:
        known = list(self.corpora)
        references: dict[str, list[str | None]] = {
            "target": [self.target],
            "model.init_corpus": [self.model.init_corpus],
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

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the corpora other than the target, in the file's order."""
        return tuple(name for name in self.corpora if name != self.target)

    @property
    def config_hash(self) -> str:
        """12 hex digits over every resolved setting: the one key of run folders and the tag `uml.config_hash`."""
        return hash_of(self.model_dump(mode="json"))

    def encoder_of(self, corpus: str) -> EncoderConfig | None:
        """Return the corpus's encoder: its own, else its modality's; None for ready embeddings."""
        config = self.corpora[corpus]
        if config.format == "embeddings":
            return None
        modality_encoder: EncoderConfig = getattr(self.encoders, config.modality)
        return config.encoder or modality_encoder

    def loss_weight(self, corpus: str) -> float:
        """Return the weight of a corpus in the summed loss (the paper's α or λ; the target's is 1)."""
        return 1.0 if corpus == self.target else self.mixing.loss_weight.get(corpus, 1.0)

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
            set_dotted(tree, key, value)
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


def set_dotted(tree: dict[Any, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested dict, making the sections on its way."""
    *sections, leaf = key.split(".")
    for section in sections:
        child = tree.get(section)
        if not isinstance(child, dict):
            child = tree[section] = {}
        tree = child
    tree[leaf] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level of dotted keys; empty mappings are left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def hash_of(value: Any) -> str:
    """Return 12 hex digits over the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
