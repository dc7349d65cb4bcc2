"""The steps of the demo, in their order. Heavy to import."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipelines.command_line import Summary
from pipelines.embed import step as embed
from pipelines.evaluate import step as evaluate
from pipelines.predict import step as predict
from pipelines.report import step as report
from pipelines.timings import CLOCK
from pipelines.train import step as train
from pipelines.tune import step as tune
from uml_core.config import Experiment
from uml_core.data.subsets import subset_text
from uml_core.tracking.reading import find_run


def run_steps(experiment: Experiment, started: float) -> Summary:
    """Run every step on the demo's corpora, which are written; `started` is when the demo was (time.monotonic)."""
    pictures = Path(experiment.corpora[experiment.target].path)

    def run_step(name: str, step: Callable[[], Summary]) -> Summary:
        """Run a step, saying which one is on and what it ended with."""
        print(f"== {name}  ({time.monotonic() - started:.0f} s)", flush=True)
        CLOCK.begin_run()
        summary = step()
        print(summary.text, flush=True)
        return summary

    def predict_drawings() -> Summary:
        """Predict the line drawings as if they were a user's new files."""
        output = pictures.parents[1] / "predictions.parquet"
        return predict.run(controls.results["model"], str(pictures / "sketch"), str(output), experiment.tracking.uri)

    unseen = without_pictures(experiment, pictures)
    embedded = run_step("embed", step=lambda: embed.run(experiment))
    trained = run_step("train", step=lambda: train.run(experiment.override({"train.twin": True})))
    mixing = run_step("tune mixing_ratio", step=lambda: tune.run(experiment, "mixing_ratio"))
    controls = run_step("tune controls", step=lambda: tune.run(experiment, "controls"))
    by_name = run_step("tune closed_form, classes without a picture", step=lambda: tune.run(unseen, "closed_form"))
    best = find_run(experiment.tracking, controls.results["run_id"]).tags["uml.best_trial"]
    evaluated = run_step("evaluate", step=lambda: evaluate.run(experiment, best))
    predicted = run_step("predict", step=predict_drawings)
    reported = run_step("report", step=lambda: report.run(experiment, None))
    minutes = (time.monotonic() - started) / 60
    text = "\n".join(
        [
            f"\nVERDICT  {controls.results['verdict']}",
            f"WITHOUT A PICTURE  {by_name.results['verdict']}",
            f"report   {reported.results['report']}",
            f"runs     mlflow ui --backend-store-uri {experiment.tracking.uri}",
            f"model    {controls.results['model']}",
            f"{minutes:.1f} minutes",
        ]
    )
    results = {
        "verdict": controls.results["verdict"],
        "verdict_kind": controls.results["verdict_kind"],
        "report": reported.results["report"],
        "tracking_uri": experiment.tracking.uri,
        "minutes": round(minutes, 2),
        "embed": embedded.results["corpora"],
        "train": trained.results,
        "tune": {"mixing_ratio": mixing.results, "controls": controls.results, "unseen": by_name.results},
        "evaluate": evaluated.results,
        "predict": predicted.results,
    }
    return Summary(text, results)


def without_pictures(experiment: Experiment, pictures: Path) -> Experiment:
    """The experiment with no train picture of every fourth class, by a subset file beside them; test pictures stay."""
    folders = sorted((pictures / "train").iterdir())
    shown = [folder for index, folder in enumerate(folders) if index % 4]
    files = [(str(file.relative_to(pictures)), code) for code, folder in enumerate(shown) for file in folder.iterdir()]
    ids, codes = zip(*sorted(files), strict=True)
    file = pictures.parent / "shown_classes.json"
    file.write_text(subset_text([folder.name for folder in shown], {"train": (ids, codes)}))
    return experiment.override({"name": f"{experiment.name}-unseen", "data.classes": "union", "data.subset": str(file)})
