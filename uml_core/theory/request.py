"""What the check of the theory is asked for. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

NUM_SEEDS = 3  # of the Gaussian study
NUM_STEPS, EARLY_STEP = 8_000, 1_000  # of its autoencoders


@dataclass(frozen=True)
class Request:
    """What to run: Monte-Carlo trials a model, the first seed, steps of each autoencoder, random cases a statement."""

    trials: int = 20_000
    seed: int = 0
    steps: int = NUM_STEPS
    cases: int = 1_000

    @property
    def seeds(self) -> range:
        """Seeds of the Gaussian study."""
        return range(self.seed, self.seed + NUM_SEEDS)

    @property
    def early_step(self) -> int:
        """The step at which arms are compared early."""
        return min(EARLY_STEP, self.steps)
