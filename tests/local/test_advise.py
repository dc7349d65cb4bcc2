"""The step `advise`: from a store to a table and one JSON line, with nothing written; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.advise import __main__ as advise
from pipelines.embed import __main__ as embed
from tests.conftest import vector_tree, write_embeddings, write_vector_corpora
from uml_core.config import parse_experiment
from uml_core.corpora.examples.known_answer import LinearGaussian, write_known_answer

WriteFile = Callable[..., Path]


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    def write(**changes: Any) -> Path:
        write_vector_corpora(tmp_path)
        file = tmp_path / "experiment.yaml"
        file.write_text(parse_experiment(vector_tree(tmp_path, **changes)).to_yaml(), encoding="utf-8")
        return file

    return write


def test_known_answers_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    verdicts = {}
    for shared in (True, False):
        file = write_known_answer(tmp_path / str(shared), LinearGaussian(num_classes=30), shared=shared)
        assert embed.main([str(file)]) == 0
        assert advise.main([str(file), "--draws", "4"]) == 0
        out = capsys.readouterr().out
        assert "'neutral' was right of" in out, "the trivial prediction stands beside it"
        results = json.loads(out.splitlines()[-1])
        verdicts[shared] = results["corpora"]["auxiliary"]
    assert verdicts[True]["verdict"] == "helps"
    assert verdicts[True]["gain"]["mean"] > 0.05
    assert verdicts[False]["verdict"] == "neutral"


def test_a_table_for_people_and_nothing_written(capsys: pytest.CaptureFixture[str], write_file: WriteFile) -> None:
    file = write_file()
    names = {"modality": "vector", "format": "embeddings", "path": str(file.parent / "names.parquet")}
    more = [f"corpora.more={json.dumps(names)}", "data.shots=2"]
    assert embed.main([str(file), *more]) == 0
    capsys.readouterr()
    before = sorted(file.parent.rglob("*"))
    assert advise.main([str(file), *more]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert sorted(file.parent.rglob("*")) == before, "no MLflow database, no file"
    assert "target: 6 classes, 2 shots a class, 10 draws" in text[0]
    results = json.loads(last)
    assert results["shots"] == 2
    for corpus in ("names", "more"):
        known = results["corpora"][corpus]
        assert known["accuracies"]["ridge"] <= results["baseline"] <= 1
        assert set(known["gain"]) == {"mean", "low", "high"}
        assert (known["covered_classes"], known["num_classes"], known["own_classes"]) == (6, 6, 0)
        assert any(line.startswith(corpus) and results["corpora"][corpus]["verdict"] in line for line in text)
    assert results["redundancy"] == {"names+more": pytest.approx(1.0)}
    assert text[1].split() == ["corpus", "verdict", "gain", "(95", "%", "interval)", "why"]
    assert "names and more tell the classes apart in the same way: one of them may do" in text
    assert {line.split()[0] for line in text} >= {"gain", "helps", "neutral", "harms"}, "what the words mean"


def test_one_draw_where_the_seed_changes_nothing(capsys: pytest.CaptureFixture[str], write_file: WriteFile) -> None:
    file = write_file()
    assert embed.main([str(file)]) == 0
    assert advise.main([str(file), "--timings"]) == 0
    out = capsys.readouterr().out
    assert "6 classes, all shots, 1 draw;" in out
    timings = json.loads(out.splitlines()[-1])["timings"]
    assert timings.pop("wall") == pytest.approx(sum(timings.values()), abs=0.01)
    assert timings["measure"] > timings["read"] > 0
    assert out.splitlines()[-2].startswith("wall  ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "run python -m pipelines.embed"),
        (("corpora.target.path=ONE",), "has one class, 'a', so every answer would be right"),
        (("optm.lr=1",), "did you mean 'optim'"),
    ],
)
def test_what_is_refused(
    capsys: pytest.CaptureFixture[str], write_file: WriteFile, arguments: tuple[str, ...], part: str
) -> None:
    file = write_file()
    one = {"label": ["a"] * 4, "embedding": [[1, 0], [0, 1], [1, 1], [0, 0]]}
    path = write_embeddings(file.parent / "one.parquet", one)
    write_embeddings(file.parent / "names.parquet", one)
    arguments = tuple(argument.replace("ONE", str(path)) for argument in arguments)
    if "path" in str(arguments):
        assert embed.main([str(file), *arguments]) == 0
    capsys.readouterr()
    assert advise.main([str(file), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert part in captured.err
    assert "Traceback" not in captured.err


def test_no_auxiliary_corpus_and_no_draws(capsys: pytest.CaptureFixture[str], write_file: WriteFile) -> None:
    file = write_file()
    tree = vector_tree(file.parent)
    del tree["corpora"]["names"]
    file.write_text(parse_experiment(tree).to_yaml(), encoding="utf-8")
    assert embed.main([str(file)]) == 0
    capsys.readouterr()
    assert advise.main([str(file)]) == 2
    assert "no auxiliary corpus beside its target" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        advise.main([str(file), "--draws", "0"])
    assert stopped.value.code == 2
