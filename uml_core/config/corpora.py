"""The sections on what is embedded: corpora, encoders, embedding, and where runs are tracked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from uml_core.config.base import Count, Fraction01, Positive, PositiveCount, Settings
from uml_core.config.template_sets import PLACEHOLDER, TEMPLATE_SETS
from uml_core.errors import listing, nearest

Modality = Literal["image", "text", "audio", "vector", "sequence"]
CorpusFormat = Literal[
    "folder", "table", "descriptors", "templates", "webdataset", "embeddings", "tokens", "multibench"
]
RANDOM_WEIGHTS = "random"  # encoders.image.weights: none are loaded, for training from scratch
READY_FORMATS = ("embeddings", "tokens", "multibench")  # adopted as they are: no encoder
CorpusControl = Literal["none", "shuffled_labels", "noise", "unrelated"]
MultiBenchDataset = Literal["mosi", "mosei", "mustard", "ur_funny", "mimic"]
MultiBenchField = Literal["vision", "audio", "text", "static", "series"]


class EncoderConfig(Settings):
    """Which frozen encoder turns raw rows into embeddings; everything but `compile` enters the store's fingerprint."""

    source: Literal["package", "timm", "transformers", "module"]
    name: str  # module: "package.module:factory", your own encoder (uml_core/encoders/base.py)
    pooling: Literal["auto", "mean", "cls", "last", "tokens"] = "auto"  # tokens: a sequence a row, for self_supervised
    weights: str | None = None  # a local directory or file, for machines without a model hub; timm: or random
    image_size: PositiveCount | None = None  # None: the model's own
    depth: PositiveCount | None = None  # timm's ViTs: so many blocks; None: the model's own
    heads: PositiveCount | None = None  # timm's ViTs: so many attention heads; None: the model's own
    max_length: PositiveCount = 256  # text: tokens kept
    max_seconds: Positive = 10.0  # audio: longer clips are cut
    compile: bool = False  # torch.compile: a minute at the start, for long runs on a GPU; on a CPU, no OpenVINO

    @model_validator(mode="after")
    def _belongs_to_timm(self) -> Self:
        settings = {"weights=random": self.weights == RANDOM_WEIGHTS, "depth": self.depth, "heads": self.heads}
        for setting, is_set in settings.items():
            if is_set and self.source != "timm":
                raise ValueError(f"{setting} is set on source {self.source}; it belongs to source timm")
        return self


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
    dataset: MultiBenchDataset | None = None  # format multibench: which one the file is of, for its label rule
    field: MultiBenchField | None = None  # format multibench: which of the file's arrays; mimic has static and series
    encoder: EncoderConfig | None = None
    # A control replaces what the corpus says and keeps everything else equal (docs/method.md, Controls):
    # shuffled_labels permutes the labels over rows; noise replaces embeddings by Gaussian noise of the same mean and
    # scale; unrelated hands each of the corpus's own classes to a target class drawn by lot.
    control: CorpusControl = "none"
    # shifted: a test set of the target under another distribution, as ImageNet-A: all rows are tested, none trained.
    role: Literal["train", "shifted"] = "train"

    @model_validator(mode="after")
    def _format_fits(self) -> Self:
        if self.modality == "vector" and self.format != "embeddings":
            raise ValueError(f"modality vector has no raw input, so format must be embeddings, not {self.format}")
        if self.modality == "sequence" and self.format not in ("tokens", "multibench"):
            raise ValueError(
                f"modality sequence has no raw input, so format must be tokens or multibench, not {self.format}"
            )
        if self.format in ("descriptors", "templates") and self.modality != "text":
            raise ValueError(f"format {self.format} holds sentences, so modality must be text, not {self.modality}")
        if self.path is None and self.format != "templates":
            raise ValueError(f"key 'path' is missing; format {self.format} needs the place of the corpus")
        if self.path is not None and self.format == "templates":
            raise ValueError("path is set on format templates, which reads no file; remove it")
        belongs = {"root": "table", "templates": "templates", "template_set": "templates", "names": "templates"}
        belongs |= {"dataset": "multibench", "field": "multibench"}
        for setting, format_ in belongs.items():
            if getattr(self, setting) and self.format != format_:
                raise ValueError(f"{setting} is set on format {self.format}; it belongs to format {format_}")
        return self

    @model_validator(mode="after")
    def _multibench_is_whole(self) -> Self:
        if self.format != "multibench":
            return self
        fields = ("static", "series") if self.dataset == "mimic" else ("vision", "audio", "text")
        if self.dataset is None:
            raise ValueError(
                "dataset is missing; format multibench needs it for its label rule: mosi, mosei, mustard, ur_funny "
                "or mimic"
            )
        if self.field not in fields:
            raise ValueError(f"field is {self.field}; the arrays of {self.dataset} are {listing(fields)}")
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
    # auto: 256, of text 1024; for millions of rows take some thousands: fewer files
    part_rows: Literal["auto"] | PositiveCount = "auto"
    actors: Literal["auto"] | PositiveCount = "auto"  # hold the encoder; auto: one a GPU, else one a core (up to 4)
    decoders: Literal["auto"] | Count = (
        "auto"  # tasks that decode beside the actors; auto: other cores beside GPUs, else 0
    )
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    max_rejected: Fraction01 = 0.05  # share of unreadable rows past which the step fails
