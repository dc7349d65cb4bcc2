"""Objectives, one optimisation step, and the loop around it."""

from uml_core.training.run import TrainingRun, train_step

__all__ = ["TrainingRun", "train_step"]
