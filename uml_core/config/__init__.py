"""The experiment file as frozen typed models: the only place that holds defaults."""

from uml_core.config.corpora import CorpusConfig, EmbedConfig, EncoderConfig, EncodersConfig, TrackingConfig
from uml_core.config.dotted import flatten, hash_of, set_dotted
from uml_core.config.evaluation import EvaluationConfig
from uml_core.config.experiment import Experiment, load_experiment, parse_experiment
from uml_core.config.training import (
    DataConfig,
    LossWeightSchedule,
    MixingConfig,
    ModelConfig,
    OptimConfig,
    PicturesConfig,
    SequenceModelConfig,
    TrainConfig,
    TuneConfig,
)

__all__ = [
    "CorpusConfig",
    "DataConfig",
    "EmbedConfig",
    "EncoderConfig",
    "EncodersConfig",
    "EvaluationConfig",
    "Experiment",
    "LossWeightSchedule",
    "MixingConfig",
    "ModelConfig",
    "OptimConfig",
    "PicturesConfig",
    "SequenceModelConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "flatten",
    "hash_of",
    "load_experiment",
    "parse_experiment",
    "set_dotted",
]
