"""One sweep a file: its space, and the question it answers. No Ray here, and no side effects.

A space file has `build(experiment) -> Space`. A space is arms × conditions × grid × seeds:
arms are compared with one another, within each condition, over paired seeds; the grid is searched inside every
(arm, condition, seed) and the point that validates best is selected; test accuracy is measured for that one alone.

A file of yours, given by its path, is a space like those here; examples/own_space.py is one to copy. What the report
says of an arm is what the file says: `Arm(says=...)`. A gain is claimed where the file names the controls it must
stand above, `Space(needs=...)`, and they were measured:

    from tune_spaces import Arm, Space

    def build(experiment):
        off, on = ({"mixing.loss_weight.captions": weight, "model.head_init": "random"} for weight in (0.0, 1.0))
        wrong = {**on, "corpora.captions.control": "shuffled_labels"}
        arms = (
            Arm("alone", off, says="the photos alone: λ = 0."),
            Arm("together", on, says="photos and captions, λ = 1."),
            Arm("wrong", wrong, says="as together, with the captions' labels shuffled.", role="shuffled"),
        )
        return Space("Do captions help?", arms, "alone", "together", seeds=(0, 1, 2), needs=("wrong",))
"""

from pathlib import Path

from uml_core.config import Experiment
from uml_core.sweeps import space
from uml_core.sweeps.space import Arm, Facts, Space, TrialSpec, trials_of

__all__ = ["Arm", "Facts", "Space", "TrialSpec", "available_spaces", "load_space", "trials_of"]

FOLDER = Path(__file__).parent


def load_space(name_or_file: str, experiment: Experiment) -> Space:
    """Build a space of this folder by its name, or a user's own from its file (`uml_core.sweeps.space.load_space`)."""
    return space.load_space(name_or_file, experiment, folder=FOLDER)


def available_spaces() -> list[str]:
    return space.spaces_in(FOLDER)
