"""Tags that say which kind of run it is, and which store and which code it comes from."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from uml_core.config import Experiment


def run_kind(experiment: Experiment) -> str:
    """Return the tag uml.kind: uml where an auxiliary corpus takes part in a step or in the head, else unimodal."""
    has_head = experiment.objective == "supervised"
    initialised = has_head and experiment.model.head_init == "zero_shot" and experiment.auxiliaries
    return "uml" if experiment.active_auxiliaries or initialised else "unimodal"


def provenance_tags(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that say which store (each corpus's fingerprint) and which code a run comes from."""
    stores = ",".join(f"{corpus}={value}" for corpus, value in fingerprints.items())
    return {"uml.store_fingerprint": stores, "git.commit": _git_commit()}


def _git_commit() -> str:
    """Return the commit of the code that runs; "unknown" where it is no checkout, as in a job's uploaded copy."""
    line = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
