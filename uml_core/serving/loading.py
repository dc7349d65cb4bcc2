"""From a saved predictor's folder to the predictor of its objective."""

from __future__ import annotations

import json
from pathlib import Path

from uml_core.serving.predictor import PREDICTOR_FILE, Predictor
from uml_core.serving.target_predictor import TargetPredictor


def load_predictor_folder(directory: Path) -> Predictor:
    """Read what the `save` of either predictor wrote."""
    settings = json.loads((directory / PREDICTOR_FILE).read_text(encoding="utf-8"))
    if settings.get("objective") == "self_supervised":
        from uml_core.serving.sequence_predictor import SequencePredictor

        return SequencePredictor.load(directory)
    return TargetPredictor.load(directory)
