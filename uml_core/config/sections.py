"""The sections of an experiment file, and what is looked up across them.

In: sections, each valid alone. Out: their look-ups, which the checks across sections (`uml_core.config.checks`) use as
well as whoever holds the validated `Experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from uml_core.config.base import Name, Settings
from uml_core.config.corpora import (
    READY_FORMATS,
    CorpusConfig,
    CorpusRole,
    EmbedConfig,
    EncoderConfig,
    EncodersConfig,
    TrackingConfig,
)
from uml_core.config.training import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    FeedConfig,
    LossWeightSchedule,
    MixingConfig,
    ModelConfig,
    OptimConfig,
    PicturesConfig,
    SequenceModelConfig,
    TrainConfig,
    TuneConfig,
)


class Sections(Settings):
    """Every section of an experiment file, not yet checked against one another."""

    name: Name
    """Name of the MLflow experiment and of the registered model."""
    seed: int = 0
    """Draws initial weights, order of samples, dropout."""
    store: str
    """Directory or URI of the embedded corpora."""
    tracking: TrackingConfig = TrackingConfig()
    target: str
    """The corpus that is to become better."""
    corpora: Mapping[Name, CorpusConfig]
    encoders: EncodersConfig = EncodersConfig()
    objective: Literal["supervised", "self_supervised"] = "supervised"
    """supervised: labels, on embeddings or pictures; self_supervised: token sequences."""
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    sequence_model: SequenceModelConfig = SequenceModelConfig()
    mixing: MixingConfig = MixingConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    pictures: PicturesConfig = PicturesConfig()
    feed: FeedConfig = FeedConfig()
    cluster: ClusterConfig = ClusterConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def auxiliaries(self) -> tuple[str, ...]:
        """Names of the corpora that train beside the target, in the file's order."""
        return tuple(name for name in self._of_role("train") if name != self.target)

    @property
    def active_auxiliaries(self) -> tuple[str, ...]:
        """Names of the auxiliaries that take part in training steps, in the file's order."""
        return tuple(filter(self.is_active, self.auxiliaries))

    @property
    def agreeing(self) -> tuple[str, ...]:
        """Names of the corpora whose rows without a label take the class that they agree with."""
        return tuple(name for name, corpus in self.corpora.items() if corpus.missing_labels == "agree")

    @property
    def num_steps(self) -> int:
        """Optimiser steps at most; 0 for a head in closed form."""
        return self.train.max_steps if self.model.head == "paper" else 0

    @property
    def takes_no_step(self) -> bool:
        """Whether nothing is trained by steps: a head in closed form, or an untrained one, on a frozen encoder."""
        return not self.num_steps and self.model.backbone == "frozen"

    @property
    def solved_from(self) -> tuple[str, ...]:
        """Names of the corpora whose rows a solved head asks for, the target first; none where steps train the head."""
        if self.model.head == "paper":
            return ()
        return (self.target, *(self.active_auxiliaries if self.model.head == "prior" else ()))

    def is_active(self, corpus: str) -> bool:
        """Whether a corpus takes part in training steps: neither its loss weight nor its batch ratio is 0.

        One that does not may still start the head (`model.init_corpus`).
        """
        return self.loss_weight(corpus) > 0 and self.batch_ratio(corpus) > 0

    @property
    def shifted_corpora(self) -> tuple[str, ...]:
        """Names of the corpora that are shifted test sets of the target."""
        return self._of_role("shifted")

    @property
    def bridges(self) -> tuple[str, ...]:
        """Names of the corpora of role bridge whose rows lie in the target's space: ready ones, or of its encoder."""
        own = self.encoder_of(self.target)
        return tuple(name for name in self._of_role("bridge") if self.encoder_of(name) in (None, own))

    @property
    def bridge_texts(self) -> tuple[str, ...]:
        """Names of the other corpora of role bridge: they say of a bridge's classes what auxiliaries say of ours."""
        return tuple(name for name in self._of_role("bridge") if name not in self.bridges)

    def _of_role(self, role: CorpusRole) -> tuple[str, ...]:
        return tuple(name for name, corpus in self.corpora.items() if corpus.role == role)

    @property
    def unlabelled_corpora(self) -> tuple[str, ...]:
        """Names of the corpora that are unlabelled piles of the target's modality."""
        return self._of_role("unlabelled")

    def encoder_of(self, corpus: str) -> EncoderConfig | None:
        """The corpus's encoder: its own, else its modality's; None for ready embeddings."""
        config = self.corpora[corpus]
        if config.format in READY_FORMATS:
            return None
        modality_encoder: EncoderConfig = getattr(self.encoders, config.modality)
        return config.encoder or modality_encoder

    def loss_weight(self, corpus: str) -> float:
        """The weight of a corpus in the summed loss (the paper's α or λ; the target's is 1).

        Of a weight that follows a schedule, its largest: 0 means that the corpus takes no part at any step.
        """
        setting = self.loss_weight_setting(corpus)
        return max(setting.start, setting.end) if isinstance(setting, LossWeightSchedule) else setting

    def loss_weight_setting(self, corpus: str) -> float | LossWeightSchedule:
        """The weight of a corpus as it is set: a number, or its schedule."""
        if corpus == self.target:
            return 1.0
        return 0.0 if self.corpora[corpus].role != "train" else self.mixing.loss_weight.get(corpus, 1.0)

    def batch_ratio(self, corpus: str) -> float:
        """The samples of a corpus per target sample in a step (the target's is 1)."""
        return 1.0 if corpus == self.target else self.mixing.batch_ratio.get(corpus, 1.0)
