"""The experiment file as frozen typed models: the only place that holds defaults."""

from uml_core.config.checks import TRAINABLE_TEXT
from uml_core.config.corpora import CorpusConfig, EmbedConfig, EncoderConfig, EncodersConfig, TrackingConfig
from uml_core.config.experiment import Experiment, flatten, hash_of, load_experiment, parse_experiment, set_dotted
from uml_core.config.training import (
    ClusterConfig,
    FeedConfig,
    LossWeightSchedule,
    OptimConfig,
    SequenceModelConfig,
    TrainConfig,
    TransferConfig,
    TuneConfig,
)

__all__ = [
    "TRAINABLE_TEXT",
    "ClusterConfig",
    "CorpusConfig",
    "EmbedConfig",
    "EncoderConfig",
    "EncodersConfig",
    "Experiment",
    "FeedConfig",
    "LossWeightSchedule",
    "OptimConfig",
    "SequenceModelConfig",
    "TrackingConfig",
    "TrainConfig",
    "TransferConfig",
    "TuneConfig",
    "flatten",
    "hash_of",
    "load_experiment",
    "parse_experiment",
    "set_dotted",
]
