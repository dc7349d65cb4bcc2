"""Several shared-head models of equal shapes as one: their weights in one tensor, loss and gradient in closed form.

In: K models and, at every step, each one's batch. Out: the gradients of each one's own weighted loss. The formulas are
those of `uml_core.gradients.closed_form` with a leading axis of models. A small head spends much of its step on calls;
here K heads share them (docs/measured.md).

Shape legend: K models, M corpora, B rows of one corpus, C classes, D embedding width, H shared width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uml_core.gradients.batch import Batch
from uml_core.models.shared_head import SharedHeadModel

HEAD = "head.weight"


class StackedHeads:
    """The weights of K models by their names in a model, (K, ...); the models' own become views of them."""

    def __init__(self, models: Sequence[SharedHeadModel], corpora: Sequence[str], *, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing
        self._projected = {name for name in corpora if isinstance(models[0].projections[name], nn.Linear)}
        own = [dict(model.named_parameters()) for model in models]
        names = [HEAD, *(_projection(name) for name in self._projected), *(_scale(name) for name in corpora)]
        self.values = {name: torch.stack([parameters[name].detach() for parameters in own]) for name in names}
        self.gradients = {
            name: torch.zeros_like(self.values[name]) for name in names if own[0][name].requires_grad
        }  # of what is trained
        # Views: each run is validated, saved and measured through its own model, as if it trained alone.
        for index, parameters in enumerate(own):
            for name in names:
                parameters[name].data = self.values[name][index]

    @property
    def device(self) -> torch.device:
        return self.values[HEAD].device

    def reached(self, corpora: Sequence[str]) -> set[str]:
        """The names of the weights that a batch of some corpora has a gradient for."""
        return self.gradients.keys() & {HEAD, *map(_projection, corpora), *map(_scale, corpora)}

    @torch.no_grad()
    def backward(self, batches: Sequence[Batch], loss_weight_KM: Tensor) -> Tensor:
        """Set the gradients of every model's Σ_m λ_km · mean cross-entropy; returns the mean losses (K, M) in nats.

        Args:
            batches: each model's batch, of the same corpora and sizes; or one that all share.
            loss_weight_KM: λ of each model and corpus of the batch.
        """
        losses = []
        for index, corpus in enumerate(batches[0].embeddings):
            embeddings_KBD = self._stacked([batch.embeddings[corpus] for batch in batches])
            labels_KB1 = self._stacked([batch.labels[corpus] for batch in batches]).unsqueeze(2)
            losses.append(
                self._add_corpus(corpus, embeddings_KBD, labels_KB1, loss_weight_KM[:, index], is_first=index == 0)
            )
        return torch.stack(losses, dim=1)

    def _add_corpus(
        self, corpus: str, embeddings_KBD: Tensor, labels_KB1: Tensor, loss_weight_K: Tensor, *, is_first: bool
    ) -> Tensor:
        """Set the gradients at a corpus's projection and scale, set or add that at the head; returns losses (K,)."""
        head_KCH, scale_K11 = self.values[HEAD], self.values[_scale(corpus)].view(-1, 1, 1)
        hidden_KBH = embeddings_KBD
        if corpus in self._projected:
            hidden_KBH = torch.bmm(embeddings_KBD, self.values[_projection(corpus)].transpose(1, 2))
        unscaled_KBC = torch.bmm(hidden_KBH, head_KCH.transpose(1, 2))
        log_p_KBC = torch.log_softmax(unscaled_KBC * scale_K11, dim=2)
        loss_KB = -log_p_KBC.gather(2, labels_KB1).squeeze(2)
        if self._label_smoothing:
            loss_KB.lerp_(-log_p_KBC.mean(dim=2), self._label_smoothing)
        gradient_KBC = log_p_KBC.exp_()
        smoothing, num_rows = self._label_smoothing, labels_KB1.shape[1]
        gradient_KBC.scatter_add_(2, labels_KB1, gradient_KBC.new_full((), smoothing - 1).expand(labels_KB1.shape))
        if smoothing:
            gradient_KBC.sub_(smoothing / gradient_KBC.shape[2])
        gradient_KBC.mul_(loss_weight_K.view(-1, 1, 1) / num_rows)
        if _scale(corpus) in self.gradients:
            torch.sum(gradient_KBC * unscaled_KBC, dim=(1, 2), out=self.gradients[_scale(corpus)])
        gradient_KBC.mul_(scale_K11)
        at_head_KCH = self.gradients[HEAD]
        torch.baddbmm(at_head_KCH, gradient_KBC.transpose(1, 2), hidden_KBH, beta=0 if is_first else 1, out=at_head_KCH)
        if corpus in self._projected:
            at_hidden_KBH = torch.bmm(gradient_KBC, head_KCH)
            torch.bmm(at_hidden_KBH.transpose(1, 2), embeddings_KBD, out=self.gradients[_projection(corpus)])
        return loss_KB.mean(dim=1)

    def _stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """Each model's tensor as one (K, ...); what all share is not copied."""
        num_models = len(self.values[HEAD])
        if len(tensors) == 1:
            return tensors[0].expand(num_models, *tensors[0].shape)
        return torch.stack(list(tensors))


def _projection(corpus: str) -> str:
    return f"projections.{corpus}.weight"


def _scale(corpus: str) -> str:
    return f"scales.{corpus}"
