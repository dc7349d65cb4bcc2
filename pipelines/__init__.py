"""The Ray wiring of each step. Holds no maths.

`uml STEP` and `python -m pipelines.STEP` are the same.
"""

import os

# Nothing but `ray_session` starts a Ray. A Ray Data stream that was given up may outlive the cluster and ask for Ray
# again: Ray would start a second one unasked. It reads the switch once, when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

STEPS = {
    "demo": "All of it on the default corpora: does it help pictures of emoji to know the names of other emoji?",
    "embed": "Embed every corpus of an experiment into the store.",
    "advise": "Estimate, before any training, which corpora are likely to help.",
    "train": "Train the shared-weight model on an embedded experiment.",
    "tune": "Sweep how modalities are mixed, with paired seeds and controls.",
    "evaluate": "Evaluate a trained run: test, shifted test sets, probes.",
    "report": "Write one HTML page and figures on an experiment's MLflow runs.",
    "predict": "Predict the classes of new files of the target modality with a trained model.",
    "export": "Write a trained target model as safetensors and ONNX: embedding in, logits and probabilities out.",
    "directions": "Sweep all subsets of corpora around each target in turn.",
    "bridge": "Write the image encoder's own classifier as a bridge.",
    "status": "Where an experiment stands, what runs where, and the line to go on with.",
    "gc": "Delete what a store no longer needs: old embeddings, folders of finished runs.",
    "theory": "Check the paper's theorems and its Gaussian study by simulation; no experiment file is needed.",
    "run": "Several steps in one process, which keeps Ray and what is imported between them.",
    "completion": "Print the completion of steps and flags for a shell.",
}
ONE_FILE = ("bridge", "run", "completion")  # steps whose work is light to import


def step_module(step: str) -> str:
    """The module whose `main` and `build_parser` a step's command line is: light, and the work beside it heavy.

    It imports `pipelines.STEP.step` when flags, experiment file and places are found good: help and mistakes are
    answered at once, not after seconds of imports.
    """
    return f"pipelines.{step}" if step in ONE_FILE else f"pipelines.{step}.__main__"
