"""The settings reference, written from the config itself: every key, its default, what is allowed, what it decides.

python -m uml_core.config > docs/settings.md
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import TypeAdapter

from uml_core.config.corpora import EncodersConfig
from uml_core.config.sections import Sections
from uml_core.config.used_by import DECISIONS, USES, Leaf, leaves, section_in

HEADER = """# Settings

Every key of an experiment file. Written by `python -m uml_core.config > docs/settings.md`; change the texts in
`uml_core/config/`, not here. Any key can be set on the command line of a step, as `section.key=value`; an unknown key
is refused with the nearest valid one.

**Decides** says what changes with a key: `store`, which rows and embeddings are stored, so that `embed` has work to do;
`rows`, which of them are trained, validated and tested on; `model`, the trained model; `pack`, heads of a sweep that
differ in it are not trained as one batched model. A dash: none of these, only pace, place or what is measured
afterwards. **Counts with** names the settings without which a key has no effect; `train` warns of those.
"""
COLUMNS = "| key | default | allowed | decides | counts with | meaning |\n|---|---|---|---|---|---|"


def settings_reference() -> str:
    """The whole reference as Markdown."""
    own = [leaf for leaf in leaves(Sections) if "." not in leaf.key]
    return "\n".join([HEADER, "## Top level\n", COLUMNS, *map(_row, own), *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    for name, field in Sections.model_fields.items():
        section, is_mapping = section_in(field.annotation)
        if section is None:
            continue
        title, prefix = (f"{name}.NAME", f"{name}.*.") if is_mapping else (name, f"{name}.")
        shown = [leaf for leaf in leaves(Sections) if leaf.pattern.startswith(prefix)]
        yield f"\n## {title}\n\n{inspect.cleandoc(section.__doc__ or '')}\n"
        if section is EncodersConfig:
            # One table for the three modalities: their keys are the same, their defaults stand above it.
            title, prefix = f"{name}.MODALITY", f"{name}.image."
            shown = [leaf for leaf in shown if leaf.pattern.startswith(prefix)]
            defaults = {kind: each.default for kind, each in EncodersConfig.model_fields.items()}
            lines = [f"* `{name}.{kind}`: source {each.source}, name {each.name}" for kind, each in defaults.items()]
            yield "\n".join([*lines, "", f"Keys of `{title}`, and of a corpus's own `encoder`:\n"])
        encoder = f"{prefix}encoder."
        yield "\n".join([COLUMNS, *(_row(leaf, prefix) for leaf in shown if not leaf.pattern.startswith(encoder))])
        if any(leaf.pattern.startswith(encoder) for leaf in shown):
            yield "\n`encoder`, where a corpus has its own: a section with the keys of `encoders.MODALITY`."


def _row(leaf: Leaf, prefix: str = "") -> str:
    use, field = USES[leaf.pattern], leaf.field
    decides = ", ".join(decision for decision in DECISIONS if decision in use.decides) or "–"
    default = "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
    kind: Any = field.annotation  # which pydantic keeps apart from its bounds
    schema = TypeAdapter(Annotated[kind, *field.metadata] if field.metadata else kind)
    cells = (
        f"`{leaf.pattern.removeprefix(prefix)}`",
        default,
        _allowed(schema.json_schema()),
        decides,
        ", ".join(condition.words for condition in use.when),
        field.description or "",
    )
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _value(default: Any) -> str:
    return json.dumps(default, default=lambda value: list(value) if isinstance(value, tuple) else dict(value))


def _allowed(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        return " or ".join(_allowed(branch) for branch in branches)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_allowed(schema['items'])}"
    if kind == "object":
        return f"by name: {_allowed(schema['additionalProperties'])}"
    if kind is None:
        return "a schedule"  # a reference: the one section that stands for a value is LossWeightSchedule
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
    names = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text", "null": "`null`"}
    return f"{names.get(kind, kind)} {bounds}".strip()


if __name__ == "__main__":
    print(settings_reference(), end="")
