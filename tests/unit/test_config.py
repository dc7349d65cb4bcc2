"""The experiment file: defaults, overrides, refusals in one line, hash and round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from uml_core.config import flatten, load_experiment, parse_experiment, set_dotted
from uml_core.errors import InputError, listing

MINIMAL = {
    "name": "pets",
    "store": "runs/pets/store",
    "target": "photos",
    "corpora": {
        "photos": {"modality": "image", "format": "folder", "path": "data/photos"},
        "captions": {"modality": "text", "format": "table", "path": "data/captions.jsonl"},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(MINIMAL, sort_keys=False), encoding="utf-8")
    return path


def test_defaults_are_the_papers() -> None:
    experiment = parse_experiment(MINIMAL)
    assert (experiment.train.max_steps, experiment.train.eval_every, experiment.train.patience) == (12800, 100, 10)
    assert (experiment.optim.lr, experiment.optim.warmup_steps, experiment.optim.warmup_lr) == (1e-3, 50, 1e-5)
    assert experiment.loss_weight("captions") == experiment.batch_ratio("captions") == 1.0


def test_overrides_are_read_as_yaml(file: Path) -> None:
    experiment = load_experiment(file, ["mixing.batch_ratio.captions=2", "optim.lr=1e-4", "data.shots=null"])
    assert experiment.batch_ratio("captions") == 2.0
    assert experiment.optim.lr == 1e-4
    assert experiment.data.shots is None


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("mixing.batch_ratio.caption=2", ["'caption'", "photos, captions", "did you mean 'captions'"]),
        ("mixing.batch_ratio.captions=-1", ["mixing.batch_ratio.captions is -1", "greater than or equal to 0"]),
        ("mixing.loss_weight.captions=-0.5", ["mixing.loss_weight.captions is -0.5"]),
        ("mixing.loss_weight.photos=1", ["names the target 'photos'", "captions"]),
        ("data.auxiliary_shots.caption=2", ["data.auxiliary_shots names corpus 'caption'", "did you mean 'captions'"]),
        ("data.auxiliary_shots.photos=2", ["data.auxiliary_shots names the target 'photos'", "data.shots", "captions"]),
        ("data.auxiliary_shots.captions=0", ["data.auxiliary_shots.captions is 0", "greater than or equal to 1"]),
        ("optm.lr=2", ["unknown key 'optm'", "did you mean 'optim'"]),
        ("optim.lrr=2", ["unknown key 'optim.lrr'", "did you mean 'lr'"]),
        ("optim.lr=fast", ["optim.lr is 'fast'", "number"]),
        ("optim.lr=.nan", ["optim.lr is nan"]),
        ("corpora.captions.modalty=text", ["unknown key 'corpora.captions.modalty'", "did you mean 'modality'"]),
        ("model.head_init=zeroshot", ["model.head_init is 'zeroshot'", "did you mean 'zero_shot'"]),
        ("train.max_steps=1.5", ["train.max_steps is 1.5", "integer"]),
        ("train.use_gpu=maybe", ["train.use_gpu is 'maybe'", "auto"]),
        ("target=fotos", ["target names corpus 'fotos'", "did you mean 'photos'"]),
        ("corpora.b d.path=1", ["'b d' is not a usable name"]),
        ("mixing.warm_start.steps=5", ["mixing.warm_start.corpus"]),
        ("mixing.warm_start={corpus: captions, steps: 12800}", ["12800 with train.max_steps 12800", "to the target"]),
        ("mixing.warm_start={corpus: photos, steps: 12800}", ["which leaves no step to any other corpus; lower it"]),
        ("mixing.batch_ratio.captions=1e-6", ["batch_ratio.captions is 1e-06", "12800 steps of 32", "not one sample"]),
        ("corpora.photos.control=noise", ["controls are for auxiliary corpora"]),
        ("corpora.captions.modality=vector", ["format must be embeddings"]),
        ("objective=selfsupervised", ["objective is 'selfsupervised'", "did you mean 'self_supervised'"]),
        ("no-equals-sign", ["not key=value"]),
    ],
)
def test_mistakes_are_told_in_one_line(file: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_experiment(file, [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_encoder_without_a_source_is_the_default_one_changed(file: Path) -> None:
    encoders = load_experiment(file, ["encoders.audio.name=moonshine_tiny", "encoders.image.pooling=tokens"]).encoders
    assert (encoders.audio.source, encoders.audio.name) == ("package", "moonshine_tiny")
    assert (encoders.image.name, encoders.image.pooling) == ("efficientnet_lite0", "tokens")


def test_unknown_key_is_named_before_what_is_missing(file: Path) -> None:
    with pytest.raises(InputError, match=r"unknown key 'corpora.photos.encoder.nam'"):
        load_experiment(file, ["corpora.photos.encoder.nam=x"])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("- a\n- b\n", "expected a mapping"),
        ("a: [1", "not a readable YAML"),
        ("", "key 'name' is missing"),
        (
            "\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(12)]),
            "limit of 10000",
        ),
        ("a: &a [*a]", "recursive aliases"),
        ("a: " + 3000 * "[" + 3000 * "]", "not a readable YAML"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        load_experiment(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")


def test_yaml_round_trip_and_hash() -> None:
    experiment = parse_experiment(MINIMAL)
    again = parse_experiment(yaml.safe_load(experiment.to_yaml()))
    assert again == experiment
    assert again.config_hash == experiment.config_hash
    assert experiment.override({"optim.lr": 2e-3}).config_hash != experiment.config_hash
    assert experiment.optim.lr == 1e-3, "override returns a new experiment"


def test_unimodal_twin_differs_in_weight_and_head_only() -> None:
    experiment = parse_experiment(MINIMAL)
    ours, twins = experiment.flattened(), experiment.unimodal_twin().flattened()
    changed = {key for key in ours.keys() | twins.keys() if ours.get(key) != twins.get(key)}
    assert changed == {"mixing.loss_weight.captions", "model.head_init"}


@given(
    st.dictionaries(
        st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3).map(".".join),
        st.integers(),
        max_size=5,
    )
)
def test_flatten_undoes_set_dotted(values: dict[str, int]) -> None:
    # Keys that run through another key's value cannot both be kept; leave them out.
    kept = {key: value for key, value in values.items() if not any(other.startswith(f"{key}.") for other in values)}
    tree: dict[str, object] = {}
    for key, value in kept.items():
        set_dotted(tree, key, value)
    assert flatten(tree) == kept


def test_a_trained_encoder_takes_shifted_sets_of_its_own_corpus_alone() -> None:
    sketches = {"modality": "image", "format": "folder", "path": "data/sketches", "role": "shifted"}
    tree = {**MINIMAL, "corpora": {**MINIMAL["corpora"], "sketches": sketches}}
    assert parse_experiment(tree).shifted_corpora == ("sketches",)
    with pytest.raises(InputError, match=r"extra splits of the target, not role: shifted"):
        parse_experiment(tree).override({"model.backbone": "finetune"})


def test_names_that_are_no_text_are_shown_escaped() -> None:
    assert listing(["a", "b\udcff"]) == "a, b\\udcff"


@pytest.mark.parametrize(("given", "said"), [(0, "greater than or equal to 1"), ("many", "valid integer")])
def test_a_number_or_a_word_is_refused_with_both(given: object, said: str) -> None:
    with pytest.raises(InputError, match=rf"tune.pack is {given!r}; allowed: 'auto'; else input should be .*{said}"):
        parse_experiment({**MINIMAL, "tune": {"pack": given}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpora.pile.modality": "audio"}, "needs the modality and the encoder of the target"),
        ({"corpora.pile.control": "noise"}, r"control is set on an unlabelled pile \(role: unlabelled\)"),
        ({"mixing.loss_weight.pile": 1.0}, r"names corpus 'pile', which is an unlabelled pile \(role: unlabelled\)"),
        ({"model.backbone": "finetune"}, "needs objective=supervised and model.backbone=frozen"),
        ({"corpora.photos.role": "unlabelled"}, "target names corpus 'photos', which is an unlabelled pile"),
    ],
)
def test_an_unlabelled_pile_is_of_the_target(changes: dict[str, Any], said: str) -> None:
    pile = {"modality": "image", "format": "folder", "path": "data/pile", "role": "unlabelled"}
    experiment = parse_experiment({**MINIMAL, "corpora": {**MINIMAL["corpora"], "pile": pile}})
    assert experiment.unlabelled_corpora == ("pile",)
    assert "pile" not in experiment.auxiliaries
    with pytest.raises(InputError, match=said) as raised:
        experiment.override(changes)
    assert "\n" not in str(raised.value)
