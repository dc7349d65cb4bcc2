"""The sections on what is embedded: corpora, encoders, embedding, and where runs are tracked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from uml_core.config.base import Count, Fraction01, Positive, PositiveCount, Settings
from uml_core.config.template_sets import PLACEHOLDER, TEMPLATE_SETS
from uml_core.errors import listing, nearest

Modality = Literal["image", "text", "audio", "vector", "sequence"]
CorpusFormat = Literal[
    "folder", "table", "descriptors", "templates", "webdataset", "embeddings", "tokens", "multibench"
]
RANDOM_WEIGHTS = "random"  # encoders.image.weights: none are loaded, for training from scratch
READY_FORMATS = ("embeddings", "tokens", "multibench")  # adopted as they are: no encoder
CorpusRole = Literal["train", "shifted", "bridge", "unlabelled"]
MissingLabels = Literal["drop", "agree"]
CorpusControl = Literal["none", "shuffled_labels", "noise", "unrelated"]
TableColumn = Literal["id", "label", "split", "text", "path", "bytes"]
MultiBenchDataset = Literal["mosi", "mosei", "mustard", "ur_funny", "mimic"]
MultiBenchField = Literal["vision", "audio", "text", "static", "series"]


class EncoderConfig(Settings):
    """Which frozen encoder turns raw rows into embeddings; everything but `compile` enters the store's fingerprint."""

    source: Literal["package", "timm", "transformers", "module"]
    """package: the defaults from pip packages; timm or transformers: any model of theirs; module: your own."""
    name: str
    """Name of the model; of source module "package.module:factory", your own encoder (uml_core/encoders/base.py)."""
    pooling: Literal["auto", "mean", "cls", "last", "tokens"] = "auto"
    """How tokens become one embedding; auto: the model's own way; tokens: they stay a sequence, for objective
    self_supervised."""
    weights: str | None = None
    """A directory or file, for machines without a model hub, local or a URI, of which each machine keeps a copy; with
    source timm also `random`: none are loaded."""
    image_size: PositiveCount | None = None
    """Side of the pictures the encoder is given, in pixels; null: the model's own."""
    depth: PositiveCount | None = None
    """Number of blocks of a timm ViT; null: the model's own."""
    heads: PositiveCount | None = None
    """Number of attention heads of a timm ViT; null: the model's own."""
    max_length: PositiveCount = 256
    """Tokens kept of a text."""
    max_seconds: Positive = 10.0
    """Seconds kept of a clip."""
    compile: bool = False
    """Compile with torch.compile: a minute at the start, for long runs on a GPU; on a CPU, no OpenVINO."""

    @model_validator(mode="after")
    def _belongs_to_timm(self) -> Self:
        settings = {"weights=random": self.weights == RANDOM_WEIGHTS, "depth": self.depth, "heads": self.heads}
        for setting, is_set in settings.items():
            if is_set and self.source != "timm":
                raise ValueError(f"{setting} is set on source {self.source}; it belongs to source timm")
        return self


# As it is when this is imported: MLflow sets the variable itself, in whatever process has used a tracking server.
DEFAULT_TRACKING = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")


class TrackingConfig(Settings):
    """Where MLflow's runs and artifacts go. A relative sqlite path is taken from the working directory."""

    uri: str = DEFAULT_TRACKING
    """MLflow tracking URI; $MLFLOW_TRACKING_URI where that is set."""
    artifacts: str = "runs/artifacts"
    """Folder or URI of MLflow's artifacts."""


class CorpusConfig(Settings):
    """One corpus. Labels, splits and ids are its own: nothing links its rows to another corpus."""

    modality: Modality
    """What a row is; `vector` and `sequence` have no raw input."""
    format: CorpusFormat
    """Layout of the raw rows: folders, tables, descriptors, templates, tar shards, or ready embeddings and
    sequences."""
    path: str | None = None
    """Local path or URI; of formats table, webdataset and embeddings also a folder or a pattern of files."""
    root: str | None = None
    """Of format table: the folder that its column `path` starts in; null: the table's own."""
    columns: Mapping[TableColumn, str] = Field(default_factory=dict)
    """Of format table: columns that the file names otherwise, ours first: {text: Caption, label: Class}."""
    split: Annotated[str, Field(min_length=1)] = "train"
    """Split of the rows that name none."""
    templates: tuple[str, ...] = ()
    """Of format templates: sentences in which {class} stands for the class."""
    template_set: str | None = None
    """Of format templates: a published set by name; null: \"a photo of a {class}.\""""
    names: Mapping[str, str] = Field(default_factory=dict)
    """Of format templates: readable names of classes; in others "_" becomes a space."""
    dataset: MultiBenchDataset | None = None
    """Of format multibench: which data set the file is, for its label rule."""
    field: MultiBenchField | None = None
    """Of format multibench: which of the file's arrays; mimic has static and series, the others vision, audio and
    text."""
    encoder: EncoderConfig | None = None
    """The corpus's own encoder, in place of its modality's."""
    control: CorpusControl = "none"
    """A control replaces what the corpus says and keeps everything else equal (docs/method.md, Controls):
    shuffled_labels permutes the labels over rows, of a bridge the names over classes; noise replaces embeddings by
    Gaussian noise of the same mean and scale; unrelated hands each of the corpus's own classes to a target class drawn
    by lot."""
    missing_labels: MissingLabels = "drop"
    """Of an auxiliary corpus, train rows without a label: drop leaves them out; agree gives a row the class whose
    labelled rows in the same corpus (its name is enough) it agrees with clearly, by embeddings alone, and leaves out
    those that agree with none."""
    role: CorpusRole = "train"
    """shifted: a test set of the target under another distribution, as ImageNet-A: all rows are tested, none trained.
    bridge: rows of other classes in the target's space, or texts about those classes, for model.head prior.
    unlabelled: more rows of what the target holds, whose labels are not read; heads in closed form learn from them."""

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
            raise ValueError(f"key 'path' is missing; format {self.format} needs the path or URI of the corpus")
        if self.path is not None and self.format == "templates":
            raise ValueError("path is set on format templates, which reads no file; remove it")
        belongs = {
            "root": "table",
            "columns": "table",
            "templates": "templates",
            "template_set": "templates",
            "names": "templates",
        }
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
    """Encoder of corpora of pictures."""
    text: EncoderConfig = EncoderConfig(source="package", name="minilm_l6")
    """Encoder of corpora of text."""
    audio: EncoderConfig = EncoderConfig(source="package", name="logmel")
    """Encoder of corpora of sound."""

    @field_validator("image", "text", "audio", mode="before")
    @classmethod
    def _of_the_default(cls, given: Any, info: ValidationInfo) -> Any:
        """Settings without a source are of the default encoder's."""
        if not isinstance(given, Mapping) or "source" in given:
            return given
        return cls.model_fields[str(info.field_name)].default.model_dump() | dict(given)


class EmbedConfig(Settings):
    """How corpora are embedded. `part_rows` is the unit of resuming: rows embedded and renamed into place at once."""

    batch_size: Literal["auto"] | PositiveCount = "auto"
    """Rows in a forward pass; auto: what was measured to be fast, halved where a GPU's memory is too small."""
    part_rows: Literal["auto"] | PositiveCount = "auto"
    """Rows that are embedded and renamed into place at once, the unit of resuming; auto: 256, of text 1,024. For
    millions of rows take some thousands: fewer files."""
    use_gpu: Literal["auto"] | bool = "auto"
    """Encode on GPUs; auto: where the cluster has them; true asks its autoscaler for them (cluster.wait_s)."""
    actors: Literal["auto"] | PositiveCount = "auto"
    """Processes that hold the encoder; auto: one a GPU, else one a core (up to 4), and more on nodes that join."""
    decoders: Literal["auto"] | Count = "auto"
    """Tasks that decode beside the actors; auto: other cores beside GPUs, else 0."""
    slices: Literal["auto"] | PositiveCount = "auto"
    """Tasks that list a corpus beside encoding, each with a folder of its own; auto: 1, or a quarter of the shards or
    tables from 256 on, of the class folders from 4,096 on, and one a row group of Parquet files of 1 GiB (at most
    1,024). A store keeps the number it began with."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number type of stored embeddings."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    max_rejected: Fraction01 = 0.05
    """Share of unreadable rows past which the step fails."""
