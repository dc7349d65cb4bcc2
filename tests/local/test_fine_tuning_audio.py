"""Training the encoder of a target of sounds: it starts as the frozen one, learns, resumes to the bit, and serves."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from tests.bad_rows import sound_file
from tests.conftest import finish
from tests.fine_tuning_runs import data_of, predictions_of, tables_of
from tests.tiny_models import SPEECH, save_audio
from uml_core.config import EncoderConfig, Experiment, parse_experiment
from uml_core.data.training_data import build_training_data
from uml_core.encoders import build_encoder
from uml_core.encoders.torch_encoder import TrainableEncoder
from uml_core.errors import InputError
from uml_core.evaluation.outcome import measure_outcome
from uml_core.feed.pictures import ReadAhead
from uml_core.gradients.ranks import RankContext
from uml_core.serving import EXPORT_FORMATS
from uml_core.serving.export import export_head
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.training.fine_tuning import FineTuningObjective
from uml_core.training.run import TrainingRun

KINDS = ("wav2vec2", "hubert", "wavlm", "data2vec", "whisper", "ast", "clap")
RATE = 16_000
PITCHES_HZ = {"high": 3_000, "low": 400, "middle": 1_100}


def write_tones(directory: Path) -> Path:
    """Write noisy tones of any phase, loudness and length; a class is a pitch."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 6, "test": 6}.items():
        for label, pitch in PITCHES_HZ.items():
            folder = directory / "sounds" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                times_S = np.arange(RATE * rng.choice([0.1, 0.15, 0.2])) / RATE
                tone_S = np.sin(2 * np.pi * (pitch * rng.uniform(0.9, 1.1) * times_S + rng.uniform()))
                samples_S = rng.uniform(0.05, 0.2) * tone_S + 0.05 * rng.normal(size=len(times_S))
                (folder / f"{index}.wav").write_bytes(sound_file(samples_S.astype(np.float32), rate=RATE))
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tones(tmp_path_factory.mktemp("sounds"))
    for kind in KINDS:
        save_audio(directory / kind, kind)
    return directory


def experiment_of(directory: Path, kind: str, **changes: Any) -> Experiment:
    audio = {"source": "transformers", "name": kind, "weights": str(directory / kind), "max_seconds": 0.25}
    tree = {
        "name": "x",
        "store": str(directory / "store"),
        "target": "sounds",
        "corpora": {
            "sounds": {"modality": "audio", "format": "folder", "path": str(directory / "sounds")},
            "names": {"modality": "vector", "format": "embeddings", "path": "names"},
        },
        "encoders": {"audio": audio},
        "model": {"backbone": "finetune"},
        "train": {"max_steps": 4, "eval_every": 2, "batch_size": 6},
        "optim": {"lr": 1e-3, "backbone_lr": 1e-3, "lora_lr": 5e-3, "warmup_steps": 0, "schedule": "constant"},
    }
    return parse_experiment(tree).override(changes)


def run_of(directory: Path, kind: str, **changes: Any) -> TrainingRun:
    experiment = experiment_of(directory, kind, **changes)
    return TrainingRun(experiment, data_of(experiment))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_frozen_one_and_every_part_is_trained(corpus: Path, kind: str) -> None:
    run = run_of(corpus, kind, **{"train.max_steps": 1})
    val = run.data.val
    assert np.allclose(run.objective.embedded().val.gathered(), val.gathered(), atol=1e-5)
    batch = run.objective.batch(0, ["sounds"]).embeddings["sounds"]
    rows = run.objective.batch_rows(0, "sounds")
    run.model.eval()
    with torch.no_grad():
        embedding_BD = run.model.encode(batch).numpy()
        assert len(run.model.encode(batch[:0])) == 0, "a rank without a sample"
    assert np.allclose(embedding_BD, val.embeddings[rows], atol=1e-5), "clips of unlike length in a batch"
    run.model.train()
    before = copy.deepcopy(run.model.backbone.state_dict())
    finish(run)
    still = {name for name, value in run.model.backbone.state_dict().items() if torch.equal(value, before[name])}
    left = ("masked_spec_embed", "embed_positions.weight", "relative_position_index")
    # A bias on keys moves every score of a query alike: softmax takes no notice, and its gradient is rounding.
    assert all(name.endswith(left) or "k_proj.bias" in name or "key.bias" in name for name in still), still


def test_a_trained_encoder_beats_the_frozen_one(corpus: Path) -> None:
    changes = {"train.max_steps": 60, "train.eval_every": 10, "train.batch_size": 12, "model.head_init": "random"}
    changes |= {"mixing.loss_weight.names": 0.0}
    tuned = finish(run_of(corpus, "whisper", **changes))
    frozen = experiment_of(corpus, "whisper", **changes, **{"model.backbone": "frozen"})
    head = finish(TrainingRun(frozen, build_training_data(frozen, tables_of(frozen)[0])))
    accuracies = measure_outcome(head).test_accuracy, measure_outcome(tuned).test_accuracy
    assert accuracies[0] < 0.6 < 0.9 < accuracies[1], accuracies
    assert tuned.progress.samples == head.progress.samples


@pytest.mark.parametrize("kind", ["wav2vec2", "clap"])
def test_partial_trains_the_last_blocks_alone(corpus: Path, kind: str) -> None:
    run = run_of(corpus, kind, **{"model.backbone": "partial", "model.trained_blocks": 1, "optim.layer_decay": 0.5})
    last = {"wav2vec2": "encoder.layers.1.", "clap": "audio_model.audio_encoder.layers.1.blocks.0."}[kind]
    first = {"wav2vec2": "encoder.layer_norm.weight", "clap": "audio_model.audio_encoder.batch_norm.weight"}[kind]
    behind = ("audio_model.audio_encoder.norm.", "audio_projection.")
    scales = run.objective.learning_rate_scales()
    assert scales[f"backbone.{first}"] == 0.25, "before two blocks"
    before = copy.deepcopy(run.model.backbone.state_dict())
    finish(run)
    moved = {name for name, value in run.model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith(last) for name in moved)
    assert all(name.startswith((last, *behind)) for name in moved), "statistics of batch norm among what stays"


def test_blocks_are_the_layers_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    """Of a model with more convolutions than layers, and of one whose norm behind the layers is listed before them."""
    config = hf.Wav2Vec2Config(**SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True)
    hf.Wav2Vec2Model(config).save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path)
    encoder = build_encoder(EncoderConfig(source="transformers", name="x", weights=str(tmp_path)), "audio")
    assert isinstance(encoder, TrainableEncoder)
    encoder.load_trainable()
    depths = encoder.block_depths()
    assert depths is not None
    wanted = {"masked_spec_embed": -1, "feature_extractor.conv_layers.1.conv.weight": 0, "encoder.layer_norm.bias": 2}
    wanted |= {f"encoder.layers.{index}.final_layer_norm.bias": index + 1 for index in range(2)}
    assert {name: depths[name] for name in wanted} == wanted


@pytest.mark.parametrize("kind", ["hubert", "ast", "clap"])
def test_adapters_alone_are_trained_and_saved(corpus: Path, kind: str, tmp_path: Path) -> None:
    run = run_of(corpus, kind, **{"model.backbone": "lora"})
    loaded = copy.deepcopy(run.model.encoder_weights())
    names = {name for name in run.model.state_dict() if name.startswith("backbone.")}
    assert all(".lora_" in name for name in names)
    adapted = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in names}
    assert {"q_proj", "k_proj", "v_proj"} <= adapted or {"query", "key", "value"} <= adapted
    finish(run)
    merged = run.model.encoder_weights()
    moved = {name.removesuffix(".weight").rpartition(".")[2] for name in loaded if (merged[name] != loaded[name]).any()}
    assert moved <= adapted
    assert served_alike(run, tmp_path).encoder_weights.keys() == loaded.keys()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("wav2vec2", {"train.accumulate": 2, "optim.ema_decay": 0.9, "pictures.keep": "stream"}),
        ("hubert", {"model.backbone": "lora", "model.lora.dropout": 0.1}),
        ("clap", {"model.backbone": "partial", "model.trained_blocks": 1}),
    ],
)
def test_resuming_changes_no_bit(corpus: Path, kind: str, changes: dict[str, Any]) -> None:
    """With the model's own dropout and layer drop on, kept or read ahead."""
    whole = finish(run_of(corpus, kind, **{**changes, "pictures.keep": "memory"}))
    experiment = experiment_of(corpus, kind, **changes)
    data = replace(data_of(experiment), open_stream=ReadAhead)
    assert data.keep == (kind != "wav2vec2")
    first = TrainingRun(experiment, data)
    next(first.evaluations())
    second = TrainingRun(experiment, data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.manual_seed(1234)  # what else has been drawn does not matter
    np.random.seed(1234)
    finish(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "whisper"])
def test_the_logged_model_hears_with_the_trained_weights(corpus: Path, kind: str, tmp_path: Path) -> None:
    run = finish(run_of(corpus, kind))
    predictor = served_alike(run, tmp_path)
    files = export_head(predictor, tmp_path / "out", ("safetensors",) if kind == "hubert" else EXPORT_FORMATS)
    assert not [file for file in files if file.name == "model.onnx"], "a graph from pictures"
    assert load_file(tmp_path / "out" / "encoder.safetensors").keys() == run.model.backbone.state_dict().keys()
    assert json.loads((tmp_path / "out" / "head.json").read_text())["encoder_is_fine_tuned"]
    assert "sounds: train and validation clips take 0.00 GiB and are kept" in run.data.describe(run.experiment)
    assert run.data.describe(run.experiment).endswith("; clips are not augmented")


def served_alike(run: TrainingRun, directory: Path) -> TargetPredictor:
    """Check that the saved model gives the logits of training's evaluation from files; returns it."""
    outcome = measure_outcome(run)
    run.objective.predictor().save(directory)
    predictor = TargetPredictor.load(directory)
    test = run.data.test
    run.model.eval()
    with torch.no_grad():
        expected = run.model({"sounds": torch.from_numpy(run.objective._pictures(test.rows))})["sounds"]
    predicted = predictions_of(predictor, [run.data.raw[row].read() for row in test.rows], batch_size=5)
    assert np.allclose(predicted.logits, expected.numpy(), atol=1e-5)
    codes = [run.data.classes.index(name) for name in predicted.classes]
    assert np.mean(np.array(codes) == test.labels) == pytest.approx(outcome.test_accuracy)
    frozen = predictor.classify(test.gathered()).logits
    assert not np.allclose(frozen, expected.numpy(), atol=1e-3)
    return predictor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders.audio": {"source": "package", "name": "logmel"}}, "needs an audio encoder of source transformers;"),
        ({"encoders.audio": {"source": "module", "name": "m:X"}}, "needs an audio encoder of source transformers;"),
        ({"encoders.audio.pooling": "tokens"}, "needs an encoder without pooling=tokens"),
        ({"train.compile": True}, "needs train.compile=false, because clips differ in length"),
        ({"model.transfer": {"source": "x"}}, "needs encoders.image of source timm"),
    ],
)
def test_what_cannot_be_trained_is_refused(corpus: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        experiment_of(corpus, "hubert", **changes)
    assert "\n" not in str(error.value)


def test_shards_of_a_model_that_sees_padding_are_refused(corpus: Path) -> None:
    experiment = experiment_of(corpus, "hubert", **{"train.workers": 2, "train.sharding": "full"})
    with pytest.raises(InputError, match=r"'hubert' hears clips of each length .* set train.sharding=none"):
        FineTuningObjective(experiment, data_of(experiment), RankContext(torch.device("cpu"), 0, 2))
