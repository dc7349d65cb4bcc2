"""Templates over the target's classes, and the settings that formats take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus_rows import list_rows
from uml_core.config import CorpusConfig, parse_experiment
from uml_core.config.template_sets import PLACEHOLDER, TEMPLATE_SETS
from uml_core.corpora.rows import Row
from uml_core.errors import InputError


def rows_of(classes: list[str], **settings: Any) -> list[Row]:
    corpus = CorpusConfig.model_validate({"modality": "text", "format": "templates", **settings})
    return list_rows("prompts", corpus, classes=lambda: classes)


def test_one_sentence_a_class_without_any_setting() -> None:
    assert rows_of(["red_fox", "cat"]) == [
        Row("red_fox/0", "red_fox", "train", text="a photo of a red fox."),
        Row("cat/0", "cat", "train", text="a photo of a cat."),
    ]


def test_own_templates_and_readable_names() -> None:
    found = rows_of(["n01", "a_b"], templates=["a {class}", "{class} and {class}, {x}"], names={"n01": "tench_fish"})
    assert [row.text for row in found] == [
        "a tench_fish",
        "tench_fish and tench_fish, {x}",
        "a a b",
        "a b and a b, {x}",
    ]
    assert [row.label for row in found] == ["n01", "n01", "a_b", "a_b"]
    with pytest.raises(InputError, match=r"names has class 'n02', which the target lacks .did you mean 'n01'"):
        rows_of(["n01"], names={"n02": "x"})
    with pytest.raises(InputError, match=r"corpora.prompts is empty"):
        rows_of([])


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(["cat", "red_fox", "{class}", "a {} b", " x "]), unique=True, min_size=1, max_size=4),
    st.sampled_from(sorted(TEMPLATE_SETS)),
)
def test_every_published_set_fills_every_class(classes: list[str], name: str) -> None:
    found = rows_of(classes, template_set=name)
    assert len(found) == len(classes) * len(TEMPLATE_SETS[name])
    assert all(row.fault is None for row in found)
    assert all(template.count(PLACEHOLDER) == 1 for template in TEMPLATE_SETS[name])


def test_the_published_sets_have_their_sizes() -> None:
    sizes = {name: len(templates) for name, templates in TEMPLATE_SETS.items()}
    assert sizes == {
        "single": 1, "imagenet_7": 7, "oxford_pets": 1, "flowers102": 1, "food101": 1, "fgvc_aircraft": 2,
        "stanford_cars": 8, "sun397": 2, "dtd": 8, "eurosat": 3,
    }  # fmt: skip
    assert all(len(set(templates)) == len(templates) for templates in TEMPLATE_SETS.values())


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"format": "templates", "path": "x"}, "path is set on format templates, which reads no file"),
        ({"format": "templates", "modality": "image"}, "format templates holds sentences, so modality must be text"),
        ({"format": "templates", "templates": ["a photo"]}, r"'a photo'; every template needs \{class\}"),
        ({"format": "templates", "template_set": "imagenet7"}, "did you mean 'imagenet_7'"),
        ({"format": "templates", "template_set": "dtd", "templates": ["{class}"]}, "both set; give one of them"),
        ({"format": "table"}, "key 'path' is missing; format table needs the path or URI"),
        (
            {"format": "table", "path": "x", "names": {"a": "b"}},
            "names is set on format table; it belongs to format templates",
        ),
        ({"format": "folder", "path": "x", "root": "y"}, "root is set on format folder; it belongs to format table"),
        ({"format": "webdatasets", "path": "x"}, "did you mean 'webdataset'"),
    ],
)
def test_settings_that_do_not_fit_the_format(setting: dict[str, Any], part: str) -> None:
    corpora = {
        "photos": {"modality": "image", "format": "folder", "path": "p"},
        "prompts": {"modality": "text", **setting},
    }
    with pytest.raises(InputError, match=part) as caught:
        parse_experiment({"name": "x", "store": "s", "target": "photos", "corpora": corpora})
    assert "prompts" in str(caught.value)
