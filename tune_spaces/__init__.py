"""One sweep a file: its space, and the question it answers. No Ray here, and no side effects.

A space file has `build(experiment) -> Space`. A space is arms × conditions × grid × seeds:
arms are compared with one another, within each condition, over paired seeds; the grid is searched inside every
(arm, condition, seed) and the point that validates best is selected; test accuracy is measured for that one alone.
A file of yours, given by its path, is a space like those here:

    \"\"\"Does weight decay matter?\"\"\"
    from tune_spaces import Arm, Space
    def build(experiment):
        arms = (Arm("unimodal", {"mixing.loss_weight": {"captions": 0.0}}), Arm("uml"))
        return Space("decay?", arms, "unimodal", "uml", seeds=(0, 1, 2), grid={"optim.weight_decay": (0.0, 0.01)})
"""

from pathlib import Path

from uml_core.config import Experiment
from uml_core.sweeps import space
from uml_core.sweeps.space import Arm, Space, TrialSpec, trials_of

__all__ = ["Arm", "Space", "TrialSpec", "available_spaces", "load_space", "trials_of"]

FOLDER = Path(__file__).parent


def load_space(name_or_file: str, experiment: Experiment) -> Space:
    """Build a space of this folder by its name, or a user's own from its file (`uml_core.sweeps.space.load_space`)."""
    return space.load_space(name_or_file, experiment, folder=FOLDER)


def available_spaces() -> list[str]:
    """Return the names of the spaces of this folder."""
    return space.spaces_in(FOLDER)
