"""The classifier that an image encoder was trained with, as rows in its embeddings' space: one of each class it knows.

In: a timm encoder, or the packaged EfficientNet. Out: the classifier's weights and the names of its classes, from timm.
Such rows are a bridge (docs/method.md, Bridges) that needs no picture.

Shape legend: B classes of the classifier, D embedding width.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import timm.data
from torch import nn

from uml_core.encoders.base import Embeddings, Encoder
from uml_core.encoders.image.timm_encoder import TimmEncoder
from uml_core.errors import InputError


class ClassifierRows(NamedTuple):
    """A row (B, D) of each class, its name, and all names that it goes by, as "tench, Tinca tinca"."""

    embeddings: Embeddings
    names: list[str]
    synonyms: list[str]


def classifier_rows(encoder: Encoder) -> ClassifierRows:
    """An encoder's own classifier; classes that share all their names are left out.

    Raises:
        InputError: it has none that is linear in its embeddings, or of classes whose names timm does not have.
    """
    named = f"encoders.image is '{encoder.config.name}'"
    if not isinstance(encoder, TimmEncoder) or encoder.config.pooling != "auto":
        raise InputError(f"{named}; a classifier comes with encoders of source timm or package, of pooling auto")
    model: Any = encoder.trained_model(with_classifier=True)
    layer = model.get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(layer, nn.Linear) or layer.in_features != encoder.dim:
        raise InputError(f"{named}, which has no linear classifier of its {encoder.dim} numbers; take one that has")
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None:
        raise InputError(f"{named}, whose {layer.out_features} classes timm has no names of; take an ImageNet model")
    info = timm.data.ImageNetInfo(subset)
    synonyms = [info.index_to_description(index) for index in range(layer.out_features)]
    names = _shortest([each.split(", ") for each in synonyms])
    counts = Counter(names)
    kept = np.array([index for index, name in enumerate(names) if counts[name] == 1])
    weight_BD = layer.weight.detach().numpy()
    return ClassifierRows(weight_BD[kept], *([each[index] for index in kept] for each in (names, synonyms)))


def _shortest(synonyms: list[list[str]]) -> list[str]:
    """The first name of each class where no other class begins with it, else all its names."""
    counts = Counter(each[0].casefold() for each in synonyms)
    return [each[0] if counts[each[0].casefold()] == 1 else ", ".join(each) for each in synonyms]
