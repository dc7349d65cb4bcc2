"""README and docs/: every command is accepted by the step it calls, every link leads somewhere, examples are valid."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines import step_module, steps
from pipelines.completion import script
from tune_spaces import available_spaces
from uml_core.config import CorpusConfig, load_experiment
from uml_core.corpora import readers
from uml_core.corpora.readers import stream_rows

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")])


class Parsed(BaseException):
    """Ends a step where its command line has been read; no step may catch it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(file: Path) -> list[list[str]]:
    """The words of every `uml STEP ...` and `python -m pipelines.STEP ...` in a document's shell blocks, or a step's
    docstring."""
    if file.suffix == ".py":
        text = file.read_text(encoding="utf-8")
        lines = re.findall(r"^    ((?:python -m pipelines\.|uml )\w+ .*)$", text, re.MULTILINE)
    else:
        lines = [line for block in blocks(file, "bash") for line in block.splitlines()]
    lines = [re.sub(r"^(.* )?uml (?=[a-z])", "python -m pipelines.", line.partition(" > ")[0]) for line in lines]
    split = [shlex.split(line, comments=True) for line in lines]
    started = [words[words.index("-m") + 1 :] for words in split if "-m" in words]
    return [words for words in started if words[0].startswith("pipelines.") and words[0] != "pipelines.STEP"]


STEP_FILES = sorted((ROOT / "pipelines").rglob("*.py"))
ALL_COMMANDS = [(file, words) for file in [*DOCUMENTS, *STEP_FILES] for words in commands(file)]


@pytest.fixture(autouse=True)
def parsing_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def parse_and_end(*args: object, parse: object = parse, **kwargs: object) -> None:
            raise Parsed(parse(*args, **kwargs))  # type: ignore[operator]

        monkeypatch.setattr(argparse.ArgumentParser, name, parse_and_end)


@pytest.mark.parametrize(
    ("file", "words"), ALL_COMMANDS, ids=[f"{file.relative_to(ROOT)} {' '.join(words)}" for file, words in ALL_COMMANDS]
)
def test_a_command_is_accepted(file: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = words[0].removeprefix("pipelines.")
    module = importlib.import_module(step_module(step))
    with pytest.raises(Parsed) as parsed:
        module.main(words[1:])
    arguments = vars(parsed.value.arguments)
    if (space := arguments.get("space")) is not None:
        assert space in available_spaces() or (ROOT / space).is_file()
    if (experiment := arguments.get("experiment")) is None or experiment.startswith("runs/"):  # written by a command
        return
    shown = [block for block in blocks(file, "yaml") if block.startswith(f"name: {Path(experiment).stem}\n")]
    if shown or experiment == "pets.yaml":  # the reader's own: what the page, or the README, shows of it
        (tmp_path / experiment).write_text([*shown, *blocks(ROOT / "README.md", "yaml")][0], encoding="utf-8")
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(ROOT)
    load_experiment(experiment, arguments["overrides"])


def test_the_commands_are_found() -> None:
    called = {words[0].removeprefix("pipelines.") for _, words in ALL_COMMANDS}
    assert called == {
        *("embed", "train", "tune", "evaluate", "predict", "report", "theory", "advise", "directions", "export"),
        *("bridge", "completion", "run", "status", "gc"),
    }
    assert {words[words.index("--space") + 1] for _, words in ALL_COMMANDS if "--space" in words} >= set(
        available_spaces()
    ), "a space without a command to copy"


def completed(words: str) -> str:
    """What bash offers for the last of the words, by the script that `uml completion bash` prints."""
    line = f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_uml; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash"], input=f"{script('bash')}\n{line}", capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()


def test_bash_completes_steps_flags_what_they_allow_and_files() -> None:
    assert completed("uml tu") == "tune"
    assert completed("uml tune exam") == "examples"
    assert completed("uml tune pets.yaml --sp") == "--space"
    assert completed("uml export --format s") == "safetensors"


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_of_an_experiment_file_are_valid(file: Path, tmp_path: Path) -> None:
    """A YAML block is an experiment file, or sections of one that fit the README's."""
    whole = blocks(ROOT / "README.md", "yaml")[0]
    for block in blocks(file, "yaml"):
        own = {line.split(":")[0] for line in block.splitlines() if re.match(r"\w+:", line)}
        kept = re.split(r"^(?=\w+:)", whole, flags=re.MULTILINE)
        rest = [section for section in kept if section.split(":")[0] not in own]
        (tmp_path / "experiment.yaml").write_text("".join([block, *rest]), encoding="utf-8")
        assert own <= load_experiment(tmp_path / "experiment.yaml").model_dump().keys()


def test_the_space_to_copy_is_the_file_that_is_tested() -> None:
    assert blocks(ROOT / "docs" / "tune.md", "python") == [(ROOT / "examples" / "own_space.py").read_text("utf-8")]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_modules_that_are_named_exist(file: Path) -> None:
    """All but those of an earlier commit: `benchmarks/x.py` at 079586a."""
    text = file.read_text(encoding="utf-8")
    top = "uml_core|pipelines|tune_spaces|tests|benchmarks|examples"
    paths = re.findall(rf"`((?:{top})/[\w/.]*)`(?!\s+at\s\w{{7}})", text)
    modules = re.findall(r"python -m ((?:uml_core|benchmarks)\.[\w.]+)", text)
    for path in [*paths, *(module.replace(".", "/") for module in modules)]:
        assert (ROOT / path).exists() or (ROOT / path).with_suffix(".py").is_file(), path


@pytest.mark.parametrize("file", [ROOT / "README.md", ROOT / "docs" / "python.md"], ids=lambda file: file.name)
def test_the_lines_of_python_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {name: rng.normal(size=(24, width)) for name, width in (("X", 8), ("T", 5), ("S", 8))}
    names |= dict.fromkeys(("y", "text_labels", "sound_labels", "test_y"), np.arange(24) % 6)
    names |= {"new_X": names["X"], "test_X": names["X"]}
    monkeypatch.chdir(tmp_path)
    code, *_ = blocks(file, "python")
    exec(code, names)
    assert names["model"].verdict_.ship in ("ridge", "discriminant", "prior", "zero_shot")


def test_the_reader_of_the_architecture_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "docs" / "architecture.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    (tmp_path / "lines.txt").write_text("a cat\na dog\n", encoding="utf-8")
    corpus = CorpusConfig(modality="text", format="descriptors", path=str(tmp_path / "lines.txt"))
    monkeypatch.setattr(readers, "READERS", {"descriptors": names["read_lines"]})
    assert [(row.id, row.read()) for row in stream_rows("lines", corpus)] == [("line-0", "a cat"), ("line-1", "a dog")]


def test_code_points_to_sections_that_exist() -> None:
    """`docs/method.md, Controls` in a docstring or comment names a heading of that document."""
    found = 0
    for folder in ("uml_core", "pipelines", "tune_spaces", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for document, section in re.findall(r"(docs/\w+\.md), ([A-Z][\w-]+)", file.read_text(encoding="utf-8")):
                found += 1
                begins = any(heading.startswith(section.lower()) for heading in anchors(ROOT / document))
                assert begins, f"{file.relative_to(ROOT)}: {document}, {section}"
    assert found > 10


def test_the_lines_on_steps_are_calls_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora in memory are made; what would start Ray is looked up, and its arguments are those of the step."""
    _, calls, in_memory, *_ = blocks(ROOT / "docs" / "python.md", "python")
    called = set()
    for call in (node for node in ast.walk(ast.parse(calls)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "steps":
            given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            inspect.signature(getattr(steps, call.func.attr)).bind(*call.args, **given)
            called.add(call.func.attr)
    assert called >= {"experiment", "embed", "advise", "tune", "predict", "report"}
    frame = pd.DataFrame({"text": ["a cat", "a dog"], "label": ["cat", "dog"]})
    names = {"X": np.eye(2), "y": ["cat", "dog"], "split": ["train", "test"], "P": np.eye(2), "frame": frame}
    monkeypatch.chdir(tmp_path)
    made = names | {"steps": steps}
    exec(in_memory, made)
    assert set(made["pets"].corpora) == {"photos", "captions", "more"}
