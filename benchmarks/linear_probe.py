"""The linear probe's five penalties: scikit-learn one after another, against one batched L-BFGS over all of them.

Both minimise mean cross-entropy + ‖W‖² / (2 C N) on standardised features, to the same tolerance on the gradient.

    python -m benchmarks.linear_probe

Shape legend: K penalties, N rows, H width, C classes.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from uml_core.models.linear_probe import STRENGTHS, LinearProbe

SHAPES = ((152, 1280, 38), (1000, 384, 20), (4000, 384, 100), (600, 40, 2))  # rows, width, classes
GRADIENT_TOLERANCE, MAX_ITERATIONS = 1e-4, 1000  # scikit-learn's default, and the probe's limit
Array = npt.NDArray[np.float64]


def batched(
    features_NH: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64], num_classes: int
) -> list[LinearProbe]:
    """Fit every penalty at once: one batched product a step, one line search on the sum of the losses."""
    values = torch.from_numpy(features_NH.astype(np.float64))
    mean_H, deviation_H = values.mean(0), values.std(0, correction=0).clamp(min=1e-8)
    scaled_NH, labels = (values - mean_H) / deviation_H, torch.from_numpy(labels_N)
    penalty_K = 1 / (2 * torch.tensor(STRENGTHS, dtype=torch.float64) * len(labels_N))
    weight_KHC = torch.zeros(len(STRENGTHS), scaled_NH.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias_K1C = torch.zeros(len(STRENGTHS), 1, num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KHC, bias_K1C],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits_KNC = torch.matmul(scaled_NH, weight_KHC) + bias_K1C
        picked_KN = logits_KNC.gather(2, labels.view(1, -1, 1).expand(len(STRENGTHS), -1, 1))[..., 0]
        loss_K = (logits_KNC.logsumexp(2) - picked_KN).mean(1) + penalty_K * weight_KHC.square().sum((1, 2))
        loss = loss_K.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    probes = []
    for weight_HC, bias_1C in zip(weight_KHC.detach(), bias_K1C.detach(), strict=True):
        rows_CH = (weight_HC / deviation_H[:, None]).T.numpy()
        probes.append(LinearProbe(rows_CH, bias_1C[0].numpy() - rows_CH @ mean_H.numpy()))
    return probes


def main() -> None:
    """Print time and validation accuracy of both, best of three."""
    torch.set_num_threads(1)
    for rows, width, classes in SHAPES:
        rng = np.random.default_rng(0)
        means = rng.normal(size=(classes, width))
        labels = np.arange(2 * rows) % classes
        features = (0.15 * means[labels] + rng.normal(size=(2 * rows, width))).astype(np.float32)
        train, val = (features[:rows], labels[:rows]), (features[rows:], labels[rows:])
        results = {}
        for name, fit in (
            ("scikit-learn", lambda: [LinearProbe.fit(*train, classes, strength=each) for each in STRENGTHS]),  # noqa: B023
            ("batched", lambda: batched(*train, classes)),  # noqa: B023
        ):
            times = []
            for _ in range(3):
                started = time.perf_counter()
                probes = fit()
                times.append(time.perf_counter() - started)
            accuracies = [probe.score(*val)[0] for probe in probes]
            results[name] = min(times), accuracies
        print(f"{rows} rows x {width}, {classes} classes")
        for name, (seconds, accuracies) in results.items():
            shown = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
            print(f"  {name:<14}{seconds:8.3f} s   validation % by C: {shown}")


if __name__ == "__main__":
    main()
