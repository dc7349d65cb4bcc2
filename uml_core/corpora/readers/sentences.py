"""Formats that are sentences alone: descriptors (a JSON file of them) and templates (made from the class names)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from uml_core.config.template_sets import filled, readable, templates_of
from uml_core.corpora.readers.base import CorpusSource
from uml_core.corpora.rows import Row, canonical_split, escaped
from uml_core.errors import InputError, listing, nearest
from uml_core.files.paths import read_json

SHAPES = "expected {class: [sentences]} or {class: {template: [sentences]}}"


def read_descriptors(source: CorpusSource) -> Iterator[Row]:
    """Yield a row a sentence of {class: [sentence, ...]} or {class: {template: [sentence, ...]}}.

    The file is read at once: it grows with the classes, not with the corpora.

    Raises:
        InputError: it is not JSON of one of the two shapes, or names a class or template twice.
    """
    location = f"{source.setting} {source.location}"
    if source.kind() == "folder":
        raise InputError(f"{source.setting} is {source.location}, a folder; format descriptors needs a JSON file")
    tree = read_json(source.location, location, object_pairs_hook=partial(_unique, location))
    if not isinstance(tree, dict):
        raise InputError(f"{location} holds a {type(tree).__name__}; {SHAPES}")
    split = canonical_split(source.corpus.split)
    for label, value in tree.items():
        groups = value if isinstance(value, dict) else {"": value}
        for template, sentences in groups.items():
            if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
                raise InputError(f"{location} has no list of sentences for class '{escaped(label)}'; {SHAPES}")
            prefix = f"{label}/{template}" if template else label
            for index, text in enumerate(sentences):
                yield Row(f"{prefix}/{index}", label, split, text=text)


def read_templates(source: CorpusSource) -> Iterator[Row]:
    """Yield a row for every class of the target and every template of the corpus.

    Raises:
        InputError: `names` names a class that the target lacks.
    """
    assert source.classes is not None, "format templates needs the target's classes"
    corpus = source.corpus
    classes = tuple(source.classes())
    unknown = sorted(set(corpus.names) - set(classes))
    if unknown:
        raise InputError(
            f"corpora.{source.name}.names has class '{unknown[0]}', which the target lacks"
            f"{nearest(unknown[0], classes)}; its classes are {listing(classes)}"
        )
    templates = templates_of(corpus.templates, corpus.template_set)
    split = canonical_split(corpus.split)
    for label in classes:
        name = corpus.names.get(label, readable(label))
        for index, template in enumerate(templates):
            yield Row(f"{label}/{index}", label, split, text=filled(template, name))


def _unique(location: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InputError(f"{location} names '{escaped(twice)}' twice; join the two lists")
    return tree
