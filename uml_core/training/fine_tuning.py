"""The supervised objective with a trained encoder: pictures or clips of the target, embeddings of all other corpora.

In: an experiment and its `PictureData`. Out: what `uml_core.training.run.TrainingRun` asks of an objective. A step's
pictures, crops and dropout depend on (seed, step) alone, so a resumed run is the uninterrupted one.

Shape legend: B batch, N rows, H height, W width, D embedding width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uml_core.config import Experiment
from uml_core.data.labelled_rows import LabelledRows
from uml_core.data.subsets import Rows
from uml_core.data.training_data import TrainingData
from uml_core.encoders import build_encoder
from uml_core.encoders.torch_encoder import Arrays, TrainableEncoder
from uml_core.errors import InputError
from uml_core.feed.embeddings import EmbeddingFeed, gathered
from uml_core.feed.mixing import Part, rank_share
from uml_core.feed.pictures import Crops, PictureData, Pictures, TargetOrder, TrainPictures, crop_and_flip
from uml_core.feed.sentences import TrainedText
from uml_core.gradients.autograd import AutogradGradient, autocast_of
from uml_core.gradients.batch import Batch, Gradient
from uml_core.gradients.joined_batch_norm import JoinedBatchNorm, has_batch_norm
from uml_core.gradients.ranks import RankContext
from uml_core.gradients.sharded_encoders import ShardedGradient, is_sharded, shard_encoders
from uml_core.models.fine_tuned import FineTunedModel
from uml_core.models.seeding import generator_of
from uml_core.models.shared_head import Classifier, Features, SharedHeadModel, build_model
from uml_core.training.objective import Objective
from uml_core.training.supervised import evaluate_head, head_classifier, head_features
from uml_core.transfer.start import load_backbone, start_blocks, without_gradients


@dataclass(frozen=True)
class PictureBatch(Batch):
    """A batch whose target is raw (pixels (B, 3, H, W), or clips), the seed of its dropout, and what is not trained."""

    seed: int = 0
    frozen: tuple[nn.Parameter, ...] = ()

    def losses(self, model: nn.Module, world_size: int) -> dict[str, Tensor]:
        # Dropout depends on (seed, step) alone, and whatever else draws from torch finds its random state as it was.
        devices = {value.device for value in self.embeddings.values() if value.device.type == "cuda"}
        with torch.random.fork_rng(list(devices)), without_gradients(self.frozen):
            torch.manual_seed(self.seed)
            return super().losses(model, world_size)


class FineTuningObjective(Objective):
    """Cross-entropy of every corpus through one head, down to the target's encoder."""

    def __init__(self, experiment: Experiment, data: TrainingData, ranks: RankContext) -> None:
        assert isinstance(data, PictureData), "a trained backbone needs pictures"
        super().__init__(experiment, data, ranks)
        self._encoder, self._is_sharded = target_encoder(experiment), is_sharded(experiment, ranks)
        self._autocast = autocast_of(experiment.train.precision, ranks.device) or contextlib.nullcontext
        load_on = "cpu" if self._is_sharded else str(ranks.device)  # no device need hold a sharded encoder
        load_backbone(experiment, self._encoder, load_on)
        self._texts = {
            corpus: TrainedText(experiment, corpus, data.train[corpus], data.sentences[corpus])
            for corpus in experiment.model.trained_auxiliaries
            if corpus in self._plan.corpora
        }
        text_encoders = {corpus: text.encoder for corpus, text in self._texts.items()}
        for text_encoder in text_encoders.values():
            text_encoder.load_trainable(device=load_on)
        heads = build_model(experiment, data).to(ranks.device)
        self.model: FineTunedModel = FineTunedModel(experiment, self._encoder, heads, text_encoders)
        self._frozen = start_blocks(experiment, self.model.backbone)
        if self._is_sharded:
            self._shard()
        self._pictures = Pictures(data.raw, self._encoder, keep=data.keep, kept=data.kept)
        own_share = (ranks.rank, ranks.world_size)
        self._order = TargetOrder(self._plan, data.train[data.target].rows, experiment.seed, *own_share, self._parts)
        self._stream = self._order.stream()
        self._train_pictures: TrainPictures | None = None
        self._labels = torch.from_numpy(data.train[data.target].labels).to(ranks.device)
        raw = (data.target, *self._texts)
        others = {name: weight for name, weight in self._plan.loss_weight.items() if name not in raw}
        self._feed = EmbeddingFeed(experiment, data, replace(self._plan, loss_weight=others), ranks)

    def _shard(self) -> None:
        if not self._encoder.pads_rows:  # ranks would gather a block unlike numbers of times, and wait for ever
            raise InputError(
                f"train.sharding is full, and '{self._encoder.config.name}' hears clips of each length by themselves, "
                "which shards cannot wait for; set train.sharding=none"
            )
        frozen = set(map(id, self._frozen.parameters))
        names = [name for name, parameter in self.model.named_parameters() if id(parameter) in frozen]
        self._frozen = replace(self._frozen, parameters=())  # whole ones, which may now go
        modules = [self.model.backbone, *self.model.text_backbones.values()]
        shard_encoders(modules, self._ranks, bfloat16=self._autocast is not contextlib.nullcontext)
        for encoder in (self._encoder, *(text.encoder for text in self._texts.values())):
            encoder.expect_inputs_on(str(self._ranks.device))
        shards = dict(self.model.named_parameters())
        self._frozen = replace(self._frozen, parameters=tuple(shards[name] for name in names))

    def _part(self, step: int, corpora: Sequence[str], part: Part) -> Batch | None:
        target, raw = self._data.target, (self._data.target, *self._texts)
        batch = self._feed.batch(step, [corpus for corpus in corpora if corpus not in raw], part)
        embeddings, labels, counts = batch.embeddings, batch.labels, batch.global_counts
        if self._experiment.model.normalize:
            embeddings = {name: nn.functional.normalize(value, dim=-1) for name, value in embeddings.items()}
        rank, world_size = part.as_rank(self._ranks.rank, self._ranks.world_size)
        for corpus, text in self._texts.items():
            start, stop = self._plan.sample_range(corpus, step)
            if corpus in corpora and start < stop:
                tokens_2BT, labels_B = text.samples(start, stop, rank_share(stop - start, rank, world_size))
                embeddings[corpus], labels[corpus] = tokens_2BT.to(self._ranks.device), labels_B.to(self._ranks.device)
                counts[corpus] = stop - start
        start, stop = self._plan.sample_range(target, step)
        if target in corpora and start < stop:
            positions, share = self._stream.rows(start, stop), self._order.share(step, part)
            embeddings = {target: self._raw_batch(step, positions, share), **embeddings}
            labels = {target: self._labels[torch.from_numpy(positions[share]).to(self._labels.device)], **labels}
            counts = {target: stop - start, **counts}
        if not embeddings:
            return None
        seed = generator_of(self._experiment.seed, "dropout", step, rank, *corpora).initial_seed()
        return PictureBatch(embeddings, labels, counts, batch.label_smoothing, seed, self._frozen.at(step))

    def _raw_batch(self, step: int, positions: npt.NDArray[np.int64], share: slice) -> Tensor:
        """The cropped pixels (B, 3, H, W), or the clips, of a share of the global batch."""
        if self._train_pictures is None:
            coming = self._order.coming(step, self._experiment.train.max_steps)
            opens = not self._data.keep and self._data.open_stream
            self._train_pictures = opens(coming, self._data.raw, self._encoder) if opens else self._pictures
        settings, rows = self._experiment.pictures, self._order.table_rows[positions[share]]
        if not len(rows):  # more ranks than samples: this one takes part with none
            return self._on_device(self._pictures(self._order.table_rows[:1])[:0]).to(torch.float32)
        batch = self._on_device(self._train_pictures(rows))
        if not (settings.augment and self._encoder.takes_crops):
            return batch.to(torch.float32)
        crops = Crops.draw(len(positions), seed=self._experiment.seed, step=step, min_crop=settings.min_crop)
        cropped_B3HW = crop_and_flip(batch, crops.share(share))
        return cropped_B3HW.contiguous(memory_format=torch.channels_last)

    def _on_device(self, array_B: Arrays) -> Tensor:
        return self._encoder.on_device(array_B, self._ranks.device)

    def gradient(self) -> Gradient:
        kind = ShardedGradient if self._is_sharded else AutogradGradient
        weights, world_size = self._plan.loss_weights(0), self._ranks.world_size
        # Clips that are heard by themselves are so in unlike numbers on each rank: there, each has its own norms.
        are_joined = world_size > 1 and self._encoder.pads_rows and has_batch_norm(self.model.backbone)
        norms = JoinedBatchNorm if are_joined else contextlib.nullcontext
        return kind(self.model, weights, world_size=world_size, autocast=self._autocast, norms=norms)

    def learning_rate_scales(self) -> dict[str, float]:
        return self.model.learning_rate_scales(self._experiment)

    def validate(self) -> tuple[float, float]:
        val, normalize = self._data.val, self._experiment.model.normalize
        labels_N = torch.from_numpy(val.labels).to(self._ranks.device)
        embedding_ND = self._encoded(val.rows, normalize=normalize)
        return evaluate_head(self.model.heads, self._data.target, embedding_ND, labels_N)

    def features(self, corpus: str, rows: LabelledRows) -> Features:
        """Some rows in the shared space (N, H): raw rows through the trained encoders, embeddings of others."""
        device, normalize = self._ranks.device, self._experiment.model.normalize
        if corpus == self._data.target:
            embedding_ND = self._encoded(rows.rows, normalize=False)
        elif corpus in self._texts:
            with in_eval_mode(self.model):
                embedding_ND = torch.from_numpy(self._texts[corpus].embedded(rows).gathered()).to(device)
        else:
            embedding_ND, _ = gathered(rows, device)
        return head_features(self.model.heads, corpus, embedding_ND, normalize=normalize)

    def classifier(self) -> Classifier:
        return head_classifier(self.model.heads, self._data.target)

    def predictor(self) -> Any:
        """The target's path: the trained encoder's weights, and the rest folded into one matrix."""
        from uml_core.serving.target_predictor import TargetPredictor

        classes, weights = self._data.classes, self.model.encoder_weights()
        # As it was measured: the store's arithmetic is that of the encoder before its training.
        folded = TargetPredictor.from_model(self._experiment, self.model.heads, classes, precision="float32")
        return replace(folded, encoder_weights={name: value.cpu().contiguous() for name, value in weights.items()})

    def target_path(self) -> list[nn.Module]:
        return [self.model.backbone, self.model.heads.projections[self._data.target], self.model.heads.head]

    def embedded(self) -> TrainingData:
        """The data with embeddings of the trained encoders as they are, for analyses."""
        data = self._data
        parts = [data.labelled, data.val, *([data.test] if data.test else []), *data.shifted.values()]
        rows = np.unique(np.concatenate([part.rows for part in parts]))
        table_ND = data.val.embeddings.copy()
        table_ND[rows] = self._encoded(rows, normalize=False).cpu().numpy()
        with in_eval_mode(self.model):
            texts = {corpus: text.embedded(data.train[corpus]) for corpus, text in self._texts.items()}
        plain = {each.name: getattr(data, each.name) for each in fields(TrainingData)}
        return replace(
            TrainingData(**plain),
            train={**data.train, **texts, data.target: replace(data.labelled, embeddings=table_ND)},
            val=replace(data.val, embeddings=table_ND),
            test=None if data.test is None else replace(data.test, embeddings=table_ND),
            shifted={name: replace(part, embeddings=table_ND) for name, part in data.shifted.items()},
        )

    @torch.no_grad()  # not inference mode: what sharded blocks gather here, they gather into again in training
    def _encoded(self, rows: Rows, *, normalize: bool) -> Tensor:
        """The embeddings (N, D) of pictures or clips as they are, in eval mode; the mode is restored."""
        encoded = []
        # Sharded blocks compute in the arithmetic they are trained in; others are measured in float32.
        with in_eval_mode(self.model), self._autocast() if self._is_sharded else contextlib.nullcontext():
            for start in range(0, len(rows), self._encoder.eval_rows):
                batch = self._on_device(self._pictures(rows[start : start + self._encoder.eval_rows]))
                encoded.append(self.model.features(batch.to(torch.float32)))
        embedding_ND = torch.cat(encoded)
        return nn.functional.normalize(embedding_ND, dim=-1) if normalize else embedding_ND


def fine_tuned_space(
    experiment: Experiment, data: PictureData, weights: Mapping[str, Tensor]
) -> tuple[SharedHeadModel, TrainingData]:
    """A trained run's shared head, and its data with the target as the trained encoder embeds it."""
    objective = FineTuningObjective(experiment, data, RankContext.cpu())
    objective.model.load_state_dict(weights)
    return objective.model.heads, objective.embedded()


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and back into the mode it was in, also where an evaluation fails."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def target_encoder(experiment: Experiment) -> TrainableEncoder:
    """The target's encoder without weights, never compiled: it is trained."""
    config, modality = experiment.encoder_of(experiment.target), experiment.corpora[experiment.target].modality
    assert config is not None, "refused with the experiment"
    encoder = build_encoder(config.model_copy(update={"compile": False}), modality)
    assert isinstance(encoder, TrainableEncoder), "refused with the experiment"
    return encoder
