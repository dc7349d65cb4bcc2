"""A step's heaviest function compiled by torch.compile, or as it is where that fails.

In: a function on one tensor. Out: a function with the same results up to rounding, random numbers included: dropout and
drop-path draw from torch's generator in either form.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from uml_core.encoders.weights import first_line

Function = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)


class Compiled:
    """A function that is compiled at its first call. It holds no weights: names in a model's state stay as they are."""

    def __init__(self, function: Function) -> None:
        self._plain = function
        # fallback_random: drawn by the kernels of the uncompiled function, not by the compiler's own generator.
        self._compiled: Function | None = torch.compile(function, options={"fallback_random": True})

    @property
    def is_compiled(self) -> bool:
        """Whether no compilation has failed."""
        return self._compiled is not None

    def __call__(self, value: Tensor) -> Tensor:
        """Return what the function gives. Where the compiler fails, a warning says why, and it is not asked again."""
        if self._compiled is None:
            return self._plain(value)
        random_state = torch.get_rng_state()
        device_state = torch.cuda.get_rng_state(value.device) if value.is_cuda else None
        try:
            # The gradient's half is compiled with the first call, not with the first backward pass: it may fail, too.
            with functorch_config.patch(force_non_lazy_backward_lowering=True):
                return self._compiled(value)
        except _compiler_errors() as error:
            self._compiled = None
            logger.warning("train.compile: the encoder is trained uncompiled, because %s", first_line(error))
        torch.set_rng_state(random_state)  # a part of the function may have run
        if device_state is not None:
            torch.cuda.set_rng_state(device_state, value.device)
        return self._plain(value)


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException  # takes a second
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
