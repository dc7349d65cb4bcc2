"""What a trained model makes of rows: their representation, and what turns it into probabilities.

Shape legend: N rows, H shared width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]  # (N, H): what the target's path makes of N rows, just before the classifier
Classifier = Callable[[Features], npt.NDArray[np.float64]]  # features (N, H) to class probabilities (N, C)
