"""Do the other corpora help the target, at any learning rate? A space of your own: copy it, and change the arms.

    python -m pipelines.tune examples/demo.yaml --space examples/own_space.py

A gain is claimed once arm `together` stands above `alone` and above `wrong`, the control that `needs` names.
"""

from tune_spaces import Arm, Space


def build(experiment):
    others = [name for name in experiment.auxiliaries if experiment.corpora[name].control == "none"]
    off = {f"mixing.loss_weight.{name}": 0.0 for name in experiment.auxiliaries} | {"model.head_init": "random"}
    on = off | {f"mixing.loss_weight.{name}": 1.0 for name in others}  # else text could start the head, on either side
    shuffled = {f"corpora.{name}.control": "shuffled_labels" for name in others}
    return Space(
        question=f"Do {' and '.join(others)} help {experiment.target}, at any learning rate?",
        arms=(
            Arm("alone", off, says=f"{experiment.target} alone: all corpora stay in the model, at λ = 0."),
            Arm("together", on, says=f"{experiment.target} with {' and '.join(others)}, at λ = 1."),
            Arm("wrong", {**on, **shuffled}, says="as together, with shuffled labels.", role="shuffled"),
        ),
        baseline="alone",
        headline="together",
        seeds=(0, 1, 2),
        grid={"optim.lr": (0.001, 0.003)},  # searched in every arm alike
        needs=("wrong",),
    )
