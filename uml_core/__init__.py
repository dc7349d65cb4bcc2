"""The method: corpora, encoders, store, mixing, shared-weight models, training, evaluation. Never imports ray.

    from uml_core import UnpairedClassifier

is the method on arrays, as a scikit-learn estimator; it is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uml_core.classifier import UnpairedClassifier

__all__ = ["UnpairedClassifier"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from uml_core.classifier import UnpairedClassifier

    return UnpairedClassifier
