"""The paper's statements about designs and estimators, tried on given modalities: Theorem 1, joint least squares, K.

Shape legend: N samples, M observed numbers, C shared parameters, R rows of a stacked design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from uml_core.theory import statements
from uml_core.theory.model import LinearGaussianModel, Modality, least_squares
from uml_core.theory.statements import TheoremCheck
from uml_core.theory.subspaces import (
    SAME,
    Floats,
    as_information,
    at_most,
    is_positive_definite,
    pseudo_inverse,
    strictly_below,
)


def check_theorem_1(x: Modality, y: Modality) -> TheoremCheck:
    """Try Theorem 1: does information about θc rise, and does its variance fall, when Y joins X?

    Raises:
        ValueError: the modalities do not share the same parameters.
    """
    LinearGaussianModel((x, y))
    has_variance = is_positive_definite(x.shared_information)
    hypotheses = {
        "some Bc_j has full column rank": any(np.linalg.matrix_rank(b) == y.shared_dim for b in y.shared_designs),
        "X alone determines θc (S_X ≻ 0)": has_variance,
    }
    rises = strictly_below(x.shared_block, x.shared_block + y.shared_block)
    alone = pseudo_inverse(x.shared_information)
    joint = pseudo_inverse(x.shared_information + y.shared_information)
    falls = has_variance and strictly_below(joint, alone)
    as_it_should = not has_variance or (
        falls == is_positive_definite(y.shared_information) and at_most(joint, alone, tolerance=SAME)
    )
    numbers = {
        "total variance, X": float(np.trace(alone)) if has_variance else math.inf,
        "total variance, X and Y": float(np.trace(joint)) if has_variance else math.nan,
        "the paper's variance, X and Y": float(np.trace(pseudo_inverse(x.shared_block + y.shared_block))),
        "smallest eigenvalue of M_Y": float(np.linalg.eigvalsh(y.shared_block)[0]),
        "smallest eigenvalue of S_Y": float(np.linalg.eigvalsh(y.shared_information)[0]),
    }
    return TheoremCheck(
        statements.THEOREM_1,
        hypotheses,
        (rises and falls) if all(hypotheses.values()) else None,
        rises == is_positive_definite(y.shared_block) and as_it_should,
        numbers,
        f"The information about θc {'rises' if rises else 'does not rise'} strictly; its variance "
        f"{'falls' if falls else 'does not fall'} strictly.",
    )


def check_joint_least_squares(x: Modality, y: Modality) -> TheoremCheck:
    """Try joint least squares over X and Y, unweighted and weighted by 1/σ², against X alone."""
    model, shared = LinearGaussianModel((x, y)), slice(x.shared_dim)
    alone = pseudo_inverse(x.shared_information)
    covariances = {
        weighting: least_squares(model, weighting=weighting).covariance[shared, shared]
        for weighting in ("unweighted", "weighted")
    }
    hypotheses = {"X alone determines θc (S_X ≻ 0)": is_positive_definite(x.shared_information)}
    met = all(hypotheses.values())
    unweighted, weighted = (
        at_most(covariances[weighting], alone, tolerance=SAME) for weighting in ("unweighted", "weighted")
    )
    numbers = {
        "total variance, X": float(np.trace(alone)) if met else math.inf,
        "total variance, unweighted": float(np.trace(covariances["unweighted"])),
        "total variance, weighted": float(np.trace(covariances["weighted"])),
    }
    return TheoremCheck(
        statements.JOINT_LEAST_SQUARES,
        hypotheses,
        unweighted if met else None,
        not met or weighted,
        numbers,
        f"Beside X alone, the joint estimate is {'no worse' if unweighted else 'worse'} unweighted and "
        f"{'no worse' if weighted or not met else 'worse'} weighted.",
    )


def check_k_modalities(designs: Sequence[npt.ArrayLike], noise_covariance: npt.ArrayLike) -> TheoremCheck:
    """Try the sum over K modalities against the information of all observations together.

    Args:
        designs: one stacked design (R_k, C) a modality, no nuisance parameters.
        noise_covariance: covariance (R, R) of the noise of all rows, in the order of the designs; positive definite.
    """
    blocks: list[Floats] = [np.asarray(design, dtype=np.float64) for design in designs]
    noise = as_information(noise_covariance, name="noise_covariance")
    ends = np.cumsum([len(block) for block in blocks])
    parts = [slice(end - len(block), end) for block, end in zip(blocks, ends, strict=True)]
    own = np.zeros_like(noise)
    for part in parts:
        own[part, part] = noise[part, part]
    design = np.vstack(blocks)
    together = design.T @ np.linalg.solve(noise, design)
    summed = design.T @ np.linalg.solve(own, design)
    without_last = blocks[:-1] and _information(design[: ends[-2]], noise[: ends[-2], : ends[-2]])
    grows = isinstance(without_last, list) or at_most(without_last, together, tolerance=SAME)
    independent, adds = bool(np.allclose(own, noise)), bool(np.allclose(summed, together, rtol=SAME))
    return TheoremCheck(
        statements.K_MODALITIES,
        {"noise independent across modalities": independent},
        adds if independent else None,
        (adds or not independent) and grows,
        {"trace of the sum": float(np.trace(summed)), "trace of the information": float(np.trace(together))},
        f"The sum {'is' if adds else 'is not'} the information of all {len(blocks)} modalities together.",
    )


def _information(design: Floats, noise: Floats) -> Floats:
    information: Floats = design.T @ np.linalg.solve(noise, design)
    return information
