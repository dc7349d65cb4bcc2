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

from tune_spaces.space import Arm, Space, TrialSpec, load_space, trials_of

__all__ = ["Arm", "Space", "TrialSpec", "load_space", "trials_of"]
