"""The sections on what is trained: model, mixing, data, optimisation, length and resources, sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from uml_core.config.base import Count, Fraction01, NonNegative, Positive, PositiveCount, Settings, Share


class TransferConfig(Settings):
    """Transformer blocks that start from a text model's (docs/method.md, Analyses).

    Objective supervised: those of the target's encoder, a timm ViT under backbone finetune; self_supervised: those of
    the shared trunk. Width, heads and MLP must be the text model's; of the blocks, as many as both have are started.
    """

    source: str  # a local directory, minilm_l6 (packaged), or a name on the hub: BERT-like or GPT-2
    blocks: PositiveCount | None = None  # the first so many; None: as many as both have
    freeze_steps: Count | Literal["all"] = 0  # steps in which what was copied is not trained
    # shuffled: the entries of every copied tensor in an order drawn by the seed; scratch: nothing is copied, and the
    # same parameters are frozen.
    control: Literal["none", "shuffled", "scratch"] = "none"


class LowRankConfig(Settings):
    """Low-rank adapters beside an encoder's layers (LoRA, arXiv 2106.09685): y = W x + alpha / rank · B (A x).

    W stays as it was loaded; A and B are trained, on `optim.lora_lr`. B starts at 0.
    """

    rank: PositiveCount = 8
    alpha: Positive | None = None  # None: twice the rank, so that a search over ranks leaves the factor alone
    dropout: Fraction01 = 0.0  # of what an adapter reads
    # Names of layers, or the ends of them: [qkv, proj]. None: every linear layer and every pointwise (1 × 1)
    # convolution in the encoder's blocks.
    targets: tuple[str, ...] | None = None

    @property
    def scale(self) -> float:
        """The factor alpha / rank on what the adapters add."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


class ModelConfig(Settings):
    """The shared-weight model: projections into one width, one head for all corpora.

    `backbone` finetune trains the target's encoder with the head, from its pictures or sounds; partial its last
    `trained_blocks` blocks; lora low-rank adapters in its blocks, as `lora` says.
    """

    backbone: Literal["frozen", "finetune", "partial", "lora"] = "frozen"
    trained_blocks: PositiveCount | None = None  # backbone partial: how many of the last blocks are trained
    lora: LowRankConfig = LowRankConfig()  # backbone lora
    # Text corpora whose encoder is trained beside the target's: as much of it as `backbone` says of the target's.
    trained_auxiliaries: tuple[str, ...] = ()
    # Of the residual branches of the target's encoder, where it is trained: the share of samples that skip the last
    # one, rising from 0 at the first. Text encoders have their own dropout.
    drop_path: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    head_init: Literal["zero_shot", "random"] = "zero_shot"
    init_corpus: str | None = None  # None: the first auxiliary text corpus, else the first auxiliary corpus
    learnable_scale: bool = True
    scale_init: Positive = 1.0
    normalize: bool = False  # L2-normalise embeddings first (for CLIP encoders, with scale_init 100)
    shared_width: PositiveCount | None = None  # None: the width of the corpus that initialises the head
    transfer: TransferConfig | None = None  # {source: DIR}: blocks start from a text model's; None: they do not


class SequenceModelConfig(Settings):
    """The model of objective self_supervised: projections of every corpus around one shared transformer.

    `task` next_token predicts each token from those before it (causal attention); masked_token predicts hidden tokens
    from all others (attention both ways). Sequences of one token are reconstructed.
    """

    width: PositiveCount = 40  # H, shared by all corpora
    layers: PositiveCount = 5
    heads: PositiveCount = 5
    feedforward: PositiveCount = 2048
    dropout: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] = 0.1  # drawn with 8 bits: .1 is 26/256
    positions: Literal["learnable", "sinusoidal", "rotary", "none"] = "learnable"
    max_tokens: PositiveCount = 256  # longer sequences are cut
    task: Literal["next_token", "masked_token"] = "next_token"
    masked_share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.15  # task masked_token: tokens hidden
    standardize: bool = True  # every feature to mean 0 and variance 1 over its corpus's train tokens

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"sequence_model.width is {self.width} with sequence_model.heads {self.heads}; "
                "the width must be a multiple of the heads"
            )
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise ValueError(
                f"sequence_model.positions is rotary, and a head is {self.width // self.heads} wide; rotary positions "
                "need an even width per head"
            )
        return self


class WarmStartConfig(Settings):
    """The first `steps` of max_steps train on `corpus` alone (the target or an auxiliary corpus).

    Where that corpus takes no part (weight or ratio 0), as in a matched baseline, nothing is trained in them.
    """

    corpus: str | None = None
    steps: Count = 0


class LossWeightSchedule(Settings):
    """A loss weight that goes from `start` to `end` over the first `steps` steps and stays there."""

    schedule: Literal["linear", "cosine"]
    start: NonNegative
    end: NonNegative
    steps: PositiveCount


def _kind_of_weight(value: object) -> str:
    return "[schedule]" if isinstance(value, Mapping | LossWeightSchedule) else "[number]"


# Told apart by what is given, so that a mistake in one is not reported as a mistake in the other.
LossWeight = Annotated[
    Annotated[NonNegative, Tag("[number]")] | Annotated[LossWeightSchedule, Tag("[schedule]")],
    Discriminator(_kind_of_weight),
]


class MixingConfig(Settings):
    """How corpora are mixed. A corpus that is not named has weight 1 and ratio 1."""

    # A number, or {schedule: linear, start: 1, end: 0, steps: 500}. A corpus of weight 0 takes no part; one whose
    # scheduled weight is 0 for a while still has its batches and its logged loss in joint steps, and no update of its
    # own in others.
    loss_weight: Mapping[str, LossWeight] = Field(default_factory=dict)
    batch_ratio: Mapping[str, NonNegative] = Field(default_factory=dict)
    # joint: one update on the weighted sum; alternate: one update per corpus in turn. Either way a step holds one
    # target batch, so the number of target samples seen does not depend on the schedule.
    schedule: Literal["joint", "alternate"] = "joint"
    warm_start: WarmStartConfig = WarmStartConfig()


class DataConfig(Settings):
    """Splits and few-shot subsets, all drawn by `split_seed`; subsets are nested."""

    shots: PositiveCount | None = None  # train samples per class; validation gets min(4, shots); None is all
    # Rows per class of an auxiliary corpus; average: each class's mean embedding as its one row; not named: all rows.
    auxiliary_shots: Mapping[str, PositiveCount | Literal["average"]] = Field(default_factory=dict)
    # Which rows are trained and validated on: a file that `train` logged (subset.json), or a few-shot index file of
    # cross_modal_adaptation. `shots` then takes its rows per class from the file's, not from the whole corpus.
    subset: str | None = None
    split_seed: int = 0
    val_fraction: Fraction01 = 0.2  # taken off train where the target has no val split
    test_fraction: Fraction01 = 0.0  # taken off train where the target has no test split; 0 takes none


class OptimConfig(Settings):
    """AdamW with linear warm-up from `warmup_lr`, then cosine to zero (or constant); or L-BFGS.

    lbfgs solves the convex problem of a head without projections: a step is an iteration over all rows at once, with a
    line search in place of the rate, and `weight_decay` is the penalty weight_decay / 2 · ‖W‖².
    """

    name: Literal["adamw", "lbfgs"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Count = 50
    warmup_lr: NonNegative = 1e-5  # where lr is less, the warm-up is at lr
    clip_norm: Positive | None = None  # gradients whose norm over all parameters is larger are scaled down to it
    backbone_lr: Positive = 5e-5  # of a trained encoder, on the schedule of lr
    lora_lr: Positive = 5e-4  # of its adapters, with model.backbone lora: they take about ten times the encoder's rate
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor on these two with every block towards the input
    # Above 0, an exponential average of the weights is what is evaluated, selected, logged and exported.
    ema_decay: Fraction01 = 0.0


class PicturesConfig(Settings):
    """The target's pictures or clips, where its encoder is trained: kept in memory once decoded, or decoded again."""

    keep: Literal["auto", "memory", "stream"] = "auto"  # auto: memory where they fit into memory_gib
    memory_gib: Positive = 4.0  # of every worker, for train and validation pictures (a byte a value) or clips (four)
    augment: bool = True  # random resized crop and horizontal flip of train pictures; clips stay as they are
    min_crop: Annotated[float, Field(gt=0, le=1)] = 0.25  # smallest crop, as a share of the picture's area


class FeedConfig(Settings):
    """Where the stored embeddings of a training run are: read into memory, or read ahead from a file on local disk.

    Both give the same model: a step's rows are a function of (seed, step) alone.
    """

    keep: Literal["auto", "memory", "stream"] = "auto"  # auto: memory where all fit, else the largest are streamed
    memory_gib: Positive = 4.0  # of every worker, for kept embeddings and for the rows that are read ahead
    cache: str | None = None  # local folder for the files; None: in a local store, else in the temporary folder


class TrainConfig(Settings):
    """Length, evaluation and resources of a training run. max_steps 0 evaluates the untrained model."""

    max_steps: Count = 12800
    batch_size: PositiveCount = 32  # target samples per step over all workers (the global batch size)
    eval_every: PositiveCount = 100
    # Evaluations without a better validation result before stopping; those of a warm start do not count.
    patience: PositiveCount = 10
    workers: PositiveCount = 1
    # full: each worker keeps 1/workers of a trained encoder's weights, gradients and optimiser state (FSDP2).
    sharding: Literal["none", "full"] = "none"
    # Where fewer nodes are there: from so many workers on, the run goes on with what there is. None: it waits for all.
    min_workers: PositiveCount | None = None
    use_gpu: Literal["auto"] | bool = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast on a GPU, float32 on a CPU
    accumulate: PositiveCount = 1  # parts that a step's batch is computed in: less memory, the same update
    label_smoothing: Fraction01 = 0.0  # share of a label spread over all classes, of every corpus
    # The target's encoder, where it is trained, compiled by torch.compile for the steps: longer to the first step, then
    # faster. Evaluations run it as it is. Where it cannot be compiled, a warning says so and training goes on without.
    compile: bool = False
    gradient_cosine: bool = False  # at every evaluation, the angle between corpora's gradients on the shared head
    report_every_s: Positive = 10.0  # metrics and checkpoints are reported by wall time: a report may block for 2 s
    report_share: Share = 0.01  # of wall time, at most: a large encoder is reported, and saved, less often
    keep_checkpoints: PositiveCount = 2  # the newest ones: a damaged one is passed over for the one before it
    twin: bool = False  # also train the matched unimodal baseline and print the difference
    # Runs of `train`, counted from `seed`; each seed draws splits and few-shot subset as well, as those of tune.seeds.
    seeds: PositiveCount = 1

    @model_validator(mode="after")
    def _workers_are_at_least_min_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"train.min_workers is {self.min_workers} with train.workers {self.workers}; it says how few workers "
                "the run may go on with: give at most train.workers"
            )
        return self


class TuneConfig(Settings):
    """What every sweep has in common; spaces in tune_spaces/ say the rest."""

    seeds: PositiveCount = 3  # paired: seed s draws the same few-shot subset and target batches in every arm
    shots: tuple[PositiveCount, ...] = ()  # conditions compared apart; empty: data.shots alone
    auxiliary_shots: tuple[Count, ...] = ()  # spaces exchange_rate, text: rows per class; empty: the space's own
    lr: tuple[Positive, ...] = ()  # searched in every arm, selected on validation; empty: optim.lr alone
    mixing: tuple[Literal["loss_weight", "batch_ratio", "schedule", "warm_start"], ...] = ("loss_weight", "batch_ratio")
    per_corpus: bool = False  # space mixing_ratio: each corpus has loss weight and ratio of its own, all combinations
    loss_weights: tuple[Positive, ...] = ()  # spaces mixing_ratio, linear_probe: λ; empty: the space's own
    batch_ratios: tuple[Positive, ...] = ()  # space mixing_ratio; empty: the space's own
    warm_starts: tuple[Fraction01, ...] = ()  # space mixing_ratio: shares of max_steps; empty: the space's own
    search: Literal["grid", "random", "tpe"] = (
        "grid"  # random: each seed draws its points; tpe: Optuna, each seed's own
    )
    objectives: tuple[Literal["accuracy", "cost"], ...] = ("accuracy",)  # cost: samples trained on, of all corpora
    stopping: Literal["none", "asha", "median"] = "none"  # of poor trials, within one arm, condition and seed only
    gpus_per_trial: NonNegative = 0.0  # may be a fraction: 0.25 runs four trials on a GPU; 0 trains on CPUs
    max_concurrent_trials: PositiveCount | None = None  # that run side by side; null: as many as the cluster holds
    # Trials on embeddings that one process trains at once, where their shapes are equal; auto: as many as are faster.
    pack: Literal["auto"] | PositiveCount = "auto"
    max_failed: Fraction01 = 0.2  # share of failed trials past which the sweep fails

    @model_validator(mode="after")
    def _accuracy_is_an_objective(self) -> Self:
        if self.objectives not in (("accuracy",), ("accuracy", "cost")):
            raise ValueError(f"tune.objectives is {list(self.objectives)}; allowed: [accuracy] or [accuracy, cost]")
        return self
