"""`benchmarks.gain`: what a folder must hold, draws and controls, and that the table says what the records say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gain, gain_tasks
from benchmarks.gain_arms import (
    BRIDGES,
    OVER_BRIDGE,
    PILES,
    Job,
    drawn_rows,
    key_of,
    measure,
    noise,
    over_bridge,
    read_task,
    shuffled,
)
from uml_core.classifier import UnpairedClassifier
from uml_core.errors import InputError

CLASSES = [f"class {code}" for code in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A target of 6 classes with 6 train and 4 test rows, and text that knows where its classes lie."""
    rng = np.random.default_rng(0)
    means_CD = rng.standard_normal((6, 8))
    labels, splits = np.repeat(CLASSES, 10).tolist(), (["train"] * 6 + ["test"] * 4) * 6
    rows_ND = np.repeat(means_CD, 10, axis=0) + 0.3 * rng.standard_normal((60, 8))
    gain_tasks.write_modality(tmp_path / "toy", "images", rows_ND, labels, splits)
    gain_tasks.write_modality(tmp_path / "toy", "text", means_CD, CLASSES, ["train"] * 6)
    return tmp_path / "toy"


def test_a_folder_is_read_by_split_and_target(folder: Path) -> None:
    task = read_task(folder)
    assert (task.name, task.use, len(task.train[0]), len(task.test[0])) == ("toy", "given", 36, 24)
    assert {name: rows.shape for name, (rows, _) in task.others.items()} == {"text": (6, 8)}


def spoil_nothing(folder: Path) -> None:
    (folder / "images.npy").unlink()


def spoil_alone(folder: Path) -> None:
    (folder / "text.npy").unlink()


def spoil_metadata(folder: Path) -> None:
    (folder / "text.jsonl").unlink()


def spoil_labels(folder: Path) -> None:
    (folder / "text.jsonl").write_text('{"split": "train"}\n' * 6, encoding="utf-8")


def spoil_names(folder: Path) -> None:
    gain_tasks.write_modality(folder, "text", np.ones((1, 3)), ["another"], ["train"])


def spoil_test(folder: Path) -> None:
    gain_tasks.write_modality(folder, "images", np.ones((2, 3)), CLASSES[:2], ["train", "train"])


def spoil_numbers(folder: Path) -> None:
    gain_tasks.write_modality(folder, "text", np.full((2, 3), np.nan), CLASSES[:2], ["train", "train"])


def spoil_settings(folder: Path) -> None:
    (folder / "task.json").write_text('{"target": 1}', encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing, "has no images.npy, the target; it has text"),
        (spoil_alone, "images.npy alone"),
        (spoil_metadata, "text.npy but no text.jsonl"),
        (spoil_labels, "without a label"),
        (spoil_names, "no train row of a class of images"),
        (spoil_test, "test rows of the same classes"),
        (spoil_numbers, "no usable embedding"),
        (spoil_settings, "no JSON object of strings"),
    ],
)
def test_a_bad_folder_is_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: object, words: str
) -> None:
    spoil(folder)  # type: ignore[operator]
    assert gain.main([str(folder), "--work", str(folder.parent / "work")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (folder.parent / "work").exists()


def test_folders_need_names_of_their_own(folder: Path) -> None:
    with pytest.raises(InputError, match="several folders are named toy"):
        gain.jobs_of([folder, folder])


def test_a_draw_has_its_shots_and_is_the_same_again(folder: Path) -> None:
    task = read_task(folder)
    (rows, labels), unseen = drawn_rows(task, 2, 3)
    assert np.unique(labels, return_counts=True)[1].tolist() == [2] * 6
    assert len(unseen) == 0
    np.testing.assert_array_equal(rows, drawn_rows(task, 2, 3)[0][0])
    assert len(drawn_rows(task, gain.ALL_ROWS, 0)[0][0]) == 36
    (_, labels), unseen = drawn_rows(task, 0, 3)
    assert len(unseen) == 2
    assert not set(unseen) & set(labels)


def test_shuffled_moves_every_name_and_noise_none(folder: Path) -> None:
    others = read_task(folder).others
    rows, labels = shuffled(others, np.array(CLASSES), 0)["text"]
    assert set(labels) == set(CLASSES)
    assert not (labels == others["text"][1]).any()
    np.testing.assert_array_equal(rows, others["text"][0])
    _, labels = shuffled(others, np.array(CLASSES[:2]), 0)["text"]
    assert labels.tolist() == [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    rows, labels = noise(others, 0)["text"]
    np.testing.assert_array_equal(labels, others["text"][1])
    assert np.abs(np.corrcoef(rows.ravel(), others["text"][0].ravel())[0, 1]) < 0.5


def test_every_arm_is_measured_on_the_same_draw(folder: Path) -> None:
    arms = (
        "ridge",
        "discriminant",
        "logistic",
        "zero_shot",
        "zero_shot_centred",
        "prior",
        "shuffled",
        "noise",
        "isotropic",
    )
    for shots in (1, 4):
        records = measure(Job(folder, "auto", shots, 0, arms))
        accuracies = {record["arm"]: record["accuracy"] for record in records}
        assert tuple(accuracies) == arms
        assert min(accuracies["ridge"], accuracies["logistic"], accuracies["prior"]) > 0.5
    (record,) = measure(Job(folder, "auto", 0, 0, ("prior",)))
    expected = 2 * record["seen"] * record["unseen"] / max(record["seen"] + record["unseen"], 1e-12)
    assert record["accuracy"] == pytest.approx(expected)


def test_a_run_goes_on_where_it_was_cut_off(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gain, "SEEDS", {0: 1, 1: 2, gain.ALL_ROWS: 1})
    monkeypatch.setattr(gain, "FEW_SEEDS", {1: 1})
    arguments = [str(folder), "--work", str(folder.parent / "work"), "--jobs", "1"]
    results = folder.parent / "work" / "results.jsonl"
    assert gain.main(arguments) == 0
    first, lines = capsys.readouterr().out, results.read_text(encoding="utf-8").splitlines()
    results.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:20], encoding="utf-8")
    assert gain.main(arguments) == 0
    assert capsys.readouterr().out == first
    assert len(results.read_text(encoding="utf-8").splitlines()) == len(lines) + 1
    rows = [line.split(" | ")[0] for line in first.splitlines() if line.startswith("|")]
    assert rows[2:4] == ["| toy (given)", "| **mean of all tasks**"]


def test_results_of_another_head_or_task_are_not_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(folder, "auto", 1, 0, ("prior",))
    key = key_of(job, "prior")
    monkeypatch.setattr("benchmarks.gain_arms._code", lambda *files: "another head")
    assert key_of(job, "prior") != key
    monkeypatch.undo()
    gain_tasks.write_modality(folder, "text", np.ones((2, 3)), CLASSES[:2], ["train", "train"])
    read_task.cache_clear()
    assert key_of(job, "prior") != key


def record(task: str, seed: int, arm: str, accuracy: float) -> dict[str, object]:
    return {"specification": "auto", "use": "given", "task": task, "shots": 1, "seed": seed, "arm": arm} | {
        "accuracy": accuracy
    }


def test_the_best_alternative_is_that_of_the_mean_over_seeds() -> None:
    accuracies = {"ridge": (0.5, 0.7), "logistic": (0.6, 0.5), "prior": (0.6, 0.6)}
    records = [record("a", seed, arm, values[seed]) for arm, values in accuracies.items() for seed in (0, 1)]
    frame = gain.compared(records, "auto")
    assert frame["best_name"].tolist() == ["ridge", "ridge"]
    assert frame["best"].tolist() == [50.0, 70.0]


def test_the_interval_knows_that_tasks_differ() -> None:
    rng = np.random.default_rng(0)
    alike = [1 + rng.standard_normal(20) for _ in range(8)]
    low, high = gain.hierarchical_interval(alike)
    assert low < 1 < high
    assert high - low < 1
    unlike = [level + each for level, each in zip(range(-4, 4), alike, strict=True)]
    wide_low, wide_high = gain.hierarchical_interval(unlike)
    assert wide_high - wide_low > 3 * (high - low)


def test_a_task_whose_data_cannot_be_had_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(work: Path) -> dict[str, gain_tasks.Modality]:
        raise InputError("no apt here")

    made = {"aligned": ("development", "images", gain_tasks.aligned), "photos": ("confirming", "images", missing)}
    monkeypatch.setattr(gain_tasks, "MADE", made)
    (folder,) = gain_tasks.make_tasks(tmp_path)
    assert "left out: photos: no apt here" in capsys.readouterr().err
    task = read_task(folder)
    assert (task.use, len(task.classes), task.others["text"][0].shape) == ("development", 50, (50, 96))


def test_glyphs_differ_and_have_names() -> None:
    rng = np.random.default_rng(0)
    pictures = {gain_tasks._glyph(glyph, rng) for glyph in gain_tasks.GLYPHS for _ in range(2)}
    assert len(pictures) == 2 * len(gain_tasks.GLYPHS)
    assert len(set(gain_tasks.GLYPHS)) == len(gain_tasks.GLYPHS)


def test_a_bridge_is_measured_with_all_its_names_with_others_alone_and_shuffled(folder: Path) -> None:
    rng = np.random.default_rng(1)
    names = [f"far {code}" for code in range(30)] + ["Class-0"]
    texts = rng.standard_normal((31, 8))
    gain_tasks.write_modality(folder, "bridge", texts, names, ["train"] * 31)
    gain_tasks.write_modality(folder, "bridge-text", texts, names, ["train"] * 31)
    task = read_task(folder)
    found = {arm: over_bridge(task, arm, 0) for arm in OVER_BRIDGE}
    assert [len(set(rows[1])) for _, rows in found.values()] == [31, 30, 31]
    assert {len(others["text"][1]) for others, _ in found.values()} == {6 + 31, 6 + 30}
    assert (found["bridge"][1][1] != found["bridge_shuffled"][1][1]).mean() > 0.8
    records = measure(Job(folder, "auto", 2, 0, ("prior", *BRIDGES)))
    assert [record["arm"] for record in records] == ["prior", *BRIDGES]
    assert set(BRIDGES) < {arm for job in gain.jobs_of([folder]) for arm in job.arms}
    gain_tasks.write_modality(folder, "bridge", np.ones((1, 3)), ["far"], ["train"])
    read_task.cache_clear()
    with pytest.raises(InputError, match=r"a bridge is bridge.npy, as wide as the target, and bridge-NAME.npy"):
        read_task(folder)


def test_a_pile_is_measured_without_the_rows_drawn_and_never_with_test_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = read_task(folder)
    rows_ND, labels = task.train
    rng = np.random.default_rng(1)
    more_UD = np.repeat([rows_ND[labels == name].mean(axis=0) for name in CLASSES], 20, axis=0)
    more_UD = (more_UD + 0.3 * rng.standard_normal(more_UD.shape)).astype(np.float32)
    np.save(folder / "unlabelled.npy", np.concatenate([more_UD, rows_ND]))
    read_task.cache_clear()
    with_pile = read_task(folder)
    assert with_pile.pile is not None
    assert with_pile.pile.shape == (156, 8)
    assert with_pile.content != task.content
    given: list[tuple[list[str], int]] = []  # auxiliary corpora and unlabelled rows of every fit
    fit = UnpairedClassifier.fit

    def spied(*args: object, unlabelled: np.ndarray | None = None, **kwargs: object) -> object:
        given.append((sorted(args[3] or {}), 0 if unlabelled is None else len(unlabelled)))  # type: ignore[call-overload]
        return fit(*args, unlabelled=unlabelled, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(UnpairedClassifier, "fit", spied)
    assert [record["arm"] for record in measure(Job(folder, "auto", 2, 0, ("prior", *PILES)))] == ["prior", *PILES]
    assert given[1:] == [(["text"], 0), (["text"], 144), ([], 144)], "12 of 156 rows were drawn"
    assert set(PILES) < {arm for each in gain.jobs_of([folder]) if each.shots for arm in each.arms}
    for rows, words in ((task.test[0][:3], "holds 3 test rows"), (more_UD[:, :5], "is 5 wide, and the target 8")):
        np.save(folder / "unlabelled.npy", rows)
        read_task.cache_clear()
        with pytest.raises(InputError, match=words):
            read_task(folder)
