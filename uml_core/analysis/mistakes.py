"""Which held-out rows a model takes for another class: a gallery, the most confident mistakes first.

In: class probabilities of held-out rows, their labels, and what can be shown of the raw rows. Out: one HTML page that
needs no other file. Only probabilities are read, so every head has it.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jinja2 import Environment
from PIL import Image

from uml_core.analysis.shared_space import AnalysisResult, Floats, TrainedRun

MAX_SHOWN = 40
MAX_LETTERS = 300  # of a text
GALLERY = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 1rem/1.4 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 1rem auto; padding: 0 1rem; }
ol { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem; }
li { box-sizing: border-box; width: 11rem; border: 1px solid #ccc; padding: .6rem; overflow-wrap: anywhere; }
img { display: block; margin: 0 0 .4rem; max-width: 100%; }
p { margin: .15rem 0; }
.id { color: #555; font-size: .8rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
<ol>
{% for mistake in mistakes %}
<li>
{% if mistake.picture %}<img src="{{ mistake.picture }}" alt="row {{ mistake.id }}">{% endif %}
{% if mistake.text %}<p>{{ mistake.text }}</p>{% endif %}
<p>taken for <strong>{{ mistake.predicted }}</strong> ({{ "%.0f" | format(100 * mistake.confidence) }} %)</p>
<p>labelled <strong>{{ mistake.label }}</strong> ({{ "%.0f" | format(100 * mistake.of_label) }} %)</p>
<p class="id">{{ mistake.id }}</p>
</li>
{% endfor %}
</ol>
</body>
</html>
"""


@dataclass(frozen=True)
class Mistake:
    """One wrongly classified row: probabilities of the predicted class and of its label, and what it looks like."""

    id: str
    label: str
    predicted: str
    confidence: float
    of_label: float
    picture: str = ""  # a data URI
    text: str = ""


def explain_mistakes(run: TrainedRun) -> AnalysisResult:
    """Show the held-out rows that the model gets wrong, those first of which it is surest."""
    probabilities_NC, labels_N = run.held_out_probabilities, run.held_out.labels
    predicted_N = probabilities_NC.argmax(axis=1)
    wrong = np.flatnonzero(predicted_N != labels_N)
    shown = wrong[np.argsort(-probabilities_NC[wrong, predicted_N[wrong]], kind="stable")][:MAX_SHOWN]
    pairs = Counter((run.data.classes[labels_N[row]], run.data.classes[predicted_N[row]]) for row in wrong)
    often = "; ".join(f"{label} taken for {other} ({count})" for (label, other), count in pairs.most_common(3))
    counts = f"{len(wrong)} of {len(labels_N)} {run.held_out_words} rows are wrong"
    title = f"Mistakes of {run.experiment.name} on {run.data.target}"
    summary = f"{counts}{f', most often {often}' if often else ''}."
    first = f" The {len(shown)} surest are shown." if len(shown) < len(wrong) else " The surest come first."
    page = (
        Environment(autoescape=True)
        .from_string(GALLERY)
        .render(title=title, summary=summary + first, mistakes=list(_mistakes(run, shown, probabilities_NC)))
    )
    return AnalysisResult(
        {"analysis/mistakes/share": len(wrong) / len(labels_N)},
        tables={"mistakes.html": page},
        summary=(f"mistakes: {summary} The {len(shown)} surest are in mistakes.html",),
    )


def _mistakes(run: TrainedRun, shown: npt.NDArray[np.int64], probabilities_NC: Floats) -> Iterator[Mistake]:
    raw, rows, classes = run.raw.get(run.data.target), run.held_out, run.data.classes
    for row in shown:
        table_row, label, predicted = int(rows.rows[row]), rows.labels[row], int(probabilities_NC[row].argmax())
        row_id = f"row {table_row}" if raw is None else raw.ids[table_row]
        shown_as = row_id if raw is None else raw.show(table_row)
        of_C = probabilities_NC[row]
        yield Mistake(
            row_id,
            classes[label],
            classes[predicted],
            float(of_C[predicted]),
            float(of_C[label]),
            picture="" if isinstance(shown_as, str) else _data_uri(shown_as),
            text=shown_as[:MAX_LETTERS] if isinstance(shown_as, str) and shown_as != row_id else "",
        )


def _data_uri(picture: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
