"""The sections on what is trained (model, mixing, data, optimisation, length and resources), swept and measured."""

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

    source: str
    """The text model, BERT-like or GPT-2: a local directory, minilm_l6 (packaged), or a name on the hub."""
    blocks: PositiveCount | None = None
    """Number of blocks to start, the first ones; null: as many as both have."""
    freeze_steps: Count | Literal["all"] = 0
    """Steps in which what was copied is not trained; all: it never is."""
    control: Literal["none", "shuffled", "scratch"] = "none"
    """shuffled: the entries of every copied tensor in an order drawn by the seed; scratch: nothing is copied, and the
    same parameters are frozen."""


class LowRankConfig(Settings):
    """Low-rank adapters beside an encoder's layers (LoRA, arXiv 2106.09685): y = W x + alpha / rank · B (A x).

    W stays as it was loaded; A and B are trained, on `optim.lora_lr`. B starts at 0.
    """

    rank: PositiveCount = 8
    """Width r of an adapter."""
    alpha: Positive | None = None
    """Numerator of the factor alpha / rank; null: twice the rank, so that a search over ranks leaves the factor
    alone."""
    dropout: Fraction01 = 0.0
    """Dropout of what an adapter reads."""
    targets: tuple[str, ...] | None = None
    """Names of the layers that get adapters, or the ends of names: [qkv, proj]. null: every linear layer and every
    pointwise (1 × 1) convolution in the encoder's blocks."""

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
    """frozen: heads on stored embeddings; finetune, partial, lora: the target's encoder is trained, too."""
    trained_blocks: PositiveCount | None = None
    """With backbone partial: how many of the last blocks are trained."""
    lora: LowRankConfig = LowRankConfig()
    """With backbone lora: the adapters."""
    trained_auxiliaries: tuple[str, ...] = ()
    """Text corpora whose encoder is trained beside the target's: as much of it as `backbone` says of the target's."""
    drop_path: Fraction01 = 0.0
    """Stochastic depth of the target's encoder, where it is trained: the share of samples that skip the last residual
    branch, rising from 0 at the first. Text encoders have their own dropout."""
    head: Literal["paper", "ridge", "discriminant", "logistic", "prior"] = "paper"
    """paper: the shared head, trained by steps. Without steps, of the target's embeddings alone: ridge and a linear
    discriminant in closed form; logistic, a regression; prior, the discriminant (ridge at one row a class) under a
    prior that the auxiliary corpora write where that is worth it."""
    head_init: Literal["zero_shot", "random"] = "zero_shot"
    """zero_shot: the shared head starts from the class means of `init_corpus`."""
    init_corpus: str | None = None
    """The corpus whose class means the head may start from; null: the first auxiliary text corpus, else the first
    auxiliary corpus."""
    learnable_scale: bool = True
    """Each corpus's logits have a learned factor."""
    scale_init: Positive = 1.0
    """Where that factor starts."""
    normalize: bool = False
    """L2-normalise embeddings first (for CLIP encoders, with scale_init 100). Any `head` but paper does so as well
    where the target's train rows hardly differ in length."""
    shared_width: PositiveCount | None = None
    """Width of the shared space; null: that of the corpus that initialises the head."""
    transfer: TransferConfig | None = None
    """{source: DIR}: blocks start from a text model's; null: they do not."""


class SequenceModelConfig(Settings):
    """The model of objective self_supervised: projections of every corpus around one shared transformer.

    `task` next_token predicts each token from those before it (causal attention); masked_token predicts hidden tokens
    from all others (attention both ways). Sequences of one token are reconstructed.
    """

    width: PositiveCount = 40
    """Width of the shared transformer."""
    layers: PositiveCount = 5
    """Blocks of the shared transformer."""
    heads: PositiveCount = 5
    """Attention heads a block."""
    feedforward: PositiveCount = 2048
    """Hidden width of a block's feed-forward part."""
    dropout: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] = 0.1
    """Dropout in the transformer, drawn with 8 bits: .1 is 26/256."""
    positions: Literal["learnable", "sinusoidal", "rotary", "none"] = "learnable"
    """How tokens know where they stand."""
    max_tokens: PositiveCount = 256
    """Tokens kept of a sequence."""
    task: Literal["next_token", "masked_token"] = "next_token"
    """Predict each next token from those before it, or hidden tokens from all others."""
    masked_share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.15
    """With task masked_token: share of tokens that are hidden."""
    standardize: bool = True
    """Every feature to mean 0 and variance 1 over its corpus's train tokens."""

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
    """The corpus that trains alone at first."""
    steps: Count = 0
    """For so many steps."""


class LossWeightSchedule(Settings):
    """A loss weight that goes from `start` to `end` over the first `steps` steps and stays there."""

    schedule: Literal["linear", "cosine"]
    """Shape of the way from `start` to `end`."""
    start: NonNegative
    """Weight at step 0."""
    end: NonNegative
    """Weight from step `steps` on."""
    steps: PositiveCount
    """Length of the way."""


def _kind_of_weight(value: object) -> str:
    return "[schedule]" if isinstance(value, Mapping | LossWeightSchedule) else "[number]"


# Distinguished by what is given, so that a mistake in one is not reported as a mistake in the other.
LossWeight = Annotated[
    Annotated[NonNegative, Tag("[number]")] | Annotated[LossWeightSchedule, Tag("[schedule]")],
    Discriminator(_kind_of_weight),
]


class MixingConfig(Settings):
    """How corpora are mixed. A corpus that is not named has weight 1 and ratio 1."""

    loss_weight: Mapping[str, LossWeight] = Field(default_factory=dict)
    """Weight of an auxiliary corpus in the summed loss (the paper's λ): a number, or {schedule: linear, start: 1, end:
    0, steps: 500}. A corpus of weight 0 takes no part; one whose scheduled weight is 0 for a while still has its
    batches and its logged loss in joint steps, and no update of its own in others."""
    batch_ratio: Mapping[str, NonNegative] = Field(default_factory=dict)
    """Samples of a corpus per target sample in a step; 0 switches it off."""
    schedule: Literal["joint", "alternate"] = "joint"
    """joint: one update on the weighted sum; alternate: one update per corpus in turn. Either way a step holds one
    target batch, so the number of target samples seen does not depend on the schedule."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """One corpus that trains alone at first."""


class LabelsConfig(Settings):
    """How the labels of all corpora are brought together, before any row is selected: the store keeps those it has."""

    normalise: Literal["none", "strip_casefold"] = "none"
    """strip_casefold: spaces around a label and its case do not count, nor in `map`; labels are in small letters."""
    map: Mapping[str, str] = Field(default_factory=dict)
    """Another label in the place of one: {tabby: cat}. Files of classes and rows name those that come out of it."""


class DataConfig(Settings):
    """Splits and few-shot subsets, all drawn by `split_seed`; subsets are nested."""

    labels: LabelsConfig = LabelsConfig()
    """Labels that are brought together over corpora."""
    classes: Literal["target", "union"] = "target"
    """Classes to tell apart: those with train rows of the target; or also those that only auxiliary corpora have."""
    bridge_overlap: Literal["keep", "remove"] = "keep"
    """Classes of a bridge that are named as one of the target's: remove says what the bridge is worth without them."""
    shots: PositiveCount | None = None
    """Train samples per class; null: all."""
    val_shots: PositiveCount | Literal["same", "all"] | None = None
    """Validation samples per class: a number, same (min(4, shots), the paper's protocol) or all; null: all of a val
    split that the target has, same where it is taken off train."""
    auxiliary_shots: Mapping[str, PositiveCount | Literal["average"]] = Field(default_factory=dict)
    """Rows per class of an auxiliary corpus; average: each class's mean embedding as its one row; not named: all
    rows."""
    subset: str | None = None
    """Which rows are trained and validated on: a file that `train` logged (subset.json), or a few-shot index file of
    cross_modal_adaptation. `shots` then draws its rows per class from the file's, not from the whole corpus."""
    split_seed: int = 0
    """Draws splits, few-shot subsets and controls; sweeps set it to each trial's seed."""
    val_fraction: Fraction01 = 0.2
    """Share taken off train where the target has no val split."""
    test_fraction: Fraction01 = 0.0
    """Share taken off train where the target has no test split; 0: there is no test."""


class OptimConfig(Settings):
    """AdamW with linear warm-up from `warmup_lr`, then cosine to zero (or constant); or L-BFGS.

    lbfgs solves the convex problem of a head without projections: a step is an iteration over all rows at once, with a
    line search in place of the rate, and `weight_decay` is the penalty weight_decay / 2 · ‖W‖².
    """

    name: Literal["adamw", "lbfgs"] = "adamw"
    """lbfgs is for a head without projections on stored embeddings."""
    lr: Positive = 1e-3
    """Learning rate at the end of the warm-up."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: falling to zero, or constant."""
    warmup_steps: Count = 50
    """Steps from `warmup_lr` to `lr`."""
    warmup_lr: NonNegative = 1e-5
    """Learning rate at the first step; where lr is less, the warm-up is at lr."""
    clip_norm: Positive | None = None
    """Gradients whose norm over all parameters is larger are scaled down to it."""
    backbone_lr: Positive = 5e-5
    """Learning rate of a trained encoder, on the schedule of lr."""
    lora_lr: Positive = 5e-4
    """Learning rate of adapters (model.backbone lora), about ten times that of an encoder."""
    layer_decay: Share = 1.0
    """Factor on an encoder's or adapters' rate with every block towards the input."""
    ema_decay: Fraction01 = 0.0
    """Decay of an exponential average of the weights; above 0, the average is what is evaluated, selected, logged and
    exported."""


class PicturesConfig(Settings):
    """The target's pictures or clips, where its encoder is trained: kept in memory once decoded, or decoded again."""

    keep: Literal["auto", "memory", "stream"] = "auto"
    """Keep decoded rows in memory or decode them again; auto: in memory where they fit into memory_gib."""
    memory_gib: Positive = 4.0
    """Memory of every worker for train and validation pictures (a byte a value) or clips (four)."""
    augment: bool = True
    """Random resized crop and horizontal flip of train pictures; clips stay as they are."""
    min_crop: Share = 0.25
    """Smallest crop, as a share of the picture's area."""


class FeedConfig(Settings):
    """Where the stored embeddings of a training run are: read into memory, or read ahead from a file on local disk.

    Both give the same model: a step's rows are a function of (seed, step) alone.
    """

    keep: Literal["auto", "memory", "stream"] = "auto"
    """Read embeddings into memory, or ahead from a local file; auto: memory where all fit, else the largest are
    streamed."""
    memory_gib: Positive = 4.0
    """Memory of every worker for kept embeddings and for the rows that are read ahead."""
    cache: str | None = None
    """Local folder for the files that are read ahead; null: in a local store, else in the temporary folder."""


class ClusterConfig(Settings):
    """What a step does with a Ray cluster; a local Ray needs none of it."""

    wait_s: NonNegative = 0.0
    """Seconds to wait for GPUs or CPUs that the cluster lacks now and its autoscaler may add; 0 refuses at once."""
    placement: Literal["pack", "spread"] = "pack"
    """Training workers on as few nodes as hold them, or on as many."""
    embed_on: str | None = None
    """A custom resource of the nodes that embed, spot ones say; null: any node."""
    train_on: str | None = None
    """A custom resource of the nodes whose workers train; null: any node."""


class TrainConfig(Settings):
    """Length, evaluation and resources of a training run. max_steps 0 evaluates the untrained model."""

    max_steps: Count = 12800
    """Length of training; 0 evaluates the untrained model."""
    batch_size: PositiveCount = 32
    """Target samples per step over all workers (the global batch size)."""
    eval_every: PositiveCount = 100
    """Steps between two evaluations on validation data."""
    patience: PositiveCount = 10
    """Evaluations without a better validation result before stopping; those of a warm start do not count."""
    workers: Literal["auto"] | PositiveCount = "auto"
    """Processes that share each batch: the same update, up to rounding. auto: the process that you start trains a model
    on stored embeddings, but on a cluster ($RAY_ADDRESS) or with a trained encoder one worker does."""
    sharding: Literal["none", "full"] = "none"
    """full: each worker keeps 1/workers of a trained encoder's weights, gradients and optimiser state (FSDP2)."""
    min_workers: PositiveCount | None = None
    """Least number of workers with which a run goes on where nodes are missing; null: it waits for all."""
    use_gpu: Literal["auto"] | bool = "auto"
    """Train on GPUs; auto: where the cluster has them; true asks its autoscaler for them (cluster.wait_s)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; auto: bfloat16 on a GPU, float32 on a CPU."""
    accumulate: PositiveCount = 1
    """Parts that a step's batch is computed in: less memory, the same update."""
    label_smoothing: Fraction01 = 0.0
    """Share of a label spread over all classes, of every corpus."""
    compile: bool = False
    """Compile the target's trained encoder with torch.compile: longer to the first step, then faster. Evaluations run
    it as it is; where it cannot be compiled, a warning says so and training goes on without."""
    gradient_cosine: bool = False
    """Measure the angle between corpora's gradients on the shared head at every evaluation."""
    report_every_s: Positive = 10.0
    """Seconds between reports of metrics and checkpoints, at least: a report may block for 2 s."""
    report_share: Share = 0.01
    """Share of wall time that reports may take: a large encoder is reported, and saved, less often."""
    keep_checkpoints: PositiveCount = 2
    """Number of newest checkpoints kept: a damaged one is passed over for the one before it."""
    twin: bool = False
    """Also train the matched unimodal baseline and print the difference."""
    seeds: PositiveCount = 1
    """Number of runs of `train`, counted from `seed`; each seed draws splits and few-shot subset as well, as those of
    tune.seeds."""

    @model_validator(mode="after")
    def _workers_are_at_least_min_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"train.min_workers is {self.min_workers} with train.workers {self.workers}; it says how few workers "
                "the run may go on with: give at most train.workers"
            )
        return self

    @property
    def num_workers(self) -> int:
        return 1 if self.workers == "auto" else self.workers


class TuneConfig(Settings):
    """What every sweep has in common; spaces in tune_spaces/ say the rest."""

    seeds: PositiveCount = 3
    """Number of seeds, paired: seed s draws the same few-shot subset and target batches in every arm."""
    shots: tuple[PositiveCount, ...] = ()
    """Values of data.shots that are compared apart; empty: data.shots alone."""
    auxiliary_shots: tuple[Count, ...] = ()
    """Rows per class of the auxiliary corpora in spaces exchange_rate and text; empty: the space's own."""
    lr: tuple[Positive, ...] = ()
    """Learning rates searched in every arm, selected on validation; empty: optim.lr alone."""
    mixing: tuple[Literal["loss_weight", "batch_ratio", "schedule", "warm_start"], ...] = ("loss_weight", "batch_ratio")
    """What space mixing_ratio searches."""
    per_corpus: bool = False
    """In space mixing_ratio each corpus has a loss weight and a ratio of its own, in all combinations."""
    loss_weights: tuple[Positive, ...] = ()
    """Loss weights (λ) of spaces mixing_ratio and linear_probe; empty: the space's own."""
    batch_ratios: tuple[Positive, ...] = ()
    """Batch ratios of space mixing_ratio; empty: the space's own."""
    warm_starts: tuple[Fraction01, ...] = ()
    """Warm starts of space mixing_ratio as shares of max_steps; empty: the space's own."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """How points of a grid are chosen. random: each seed draws its own; tpe: proposed by Optuna, for each seed."""
    objectives: tuple[Literal["accuracy", "cost"], ...] = ("accuracy",)
    """What tpe optimises; cost: samples trained on, of all corpora."""
    stopping: Literal["none", "asha", "median"] = "none"
    """Early stopping of poor trials, within one arm, condition and seed only."""
    gpus_per_trial: NonNegative = 0.0
    """GPUs of a trial, at most 1; 0.25 runs four trials on one, 0 trains on CPUs."""
    max_concurrent_trials: PositiveCount | None = None
    """Trials that run side by side; null: as many as the cluster holds."""
    pack: Literal["auto"] | PositiveCount = "auto"
    """Number of trials on embeddings that one process trains as one batched model, where their shapes are equal; auto:
    as many as are faster."""
    max_failed: Fraction01 = 0.2
    """Share of failed trials past which the sweep fails."""

    @model_validator(mode="after")
    def _accuracy_is_an_objective(self) -> Self:
        if self.objectives not in (("accuracy",), ("accuracy", "cost")):
            raise ValueError(f"tune.objectives is {list(self.objectives)}; allowed: [accuracy] or [accuracy, cost]")
        return self


class EvaluationConfig(Settings):
    """What `pipelines.evaluate` measures; training and sweeps measure test and shifted test sets alone."""

    evaluators: tuple[str, ...] = ()
    """What is measured: names (uml_core/evaluation/registry.py), `default` for those that run unasked, and your own as
    package.module:function or FILE.py:function. Empty: the default ones."""
    shots: Annotated[tuple[PositiveCount, ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    """Rows per class that few_shot_probe is fitted on."""
    seeds: PositiveCount = 3
    """Draws of few_shot_probe, counted from data.split_seed."""
    corruptions: tuple[str, ...] = ()
    """Kinds of corruption that the evaluator `corruptions` applies; empty: all of the modality."""
    corruption_rows: PositiveCount = 1000
    """Test rows that are corrupted, at most."""
    class_maps: Mapping[str, str] = Field(default_factory=dict)
    """By shifted test set, a file that maps its class names to the target's: JSON {theirs: ours}, or CSV without a
    header."""
