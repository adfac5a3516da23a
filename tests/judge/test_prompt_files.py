"""Prompts as data: what their files must be, and that texts in them stay texts."""

from __future__ import annotations

import hashlib
import json

import pytest

from tc_adapters_lens.errors import JudgeError
from tc_adapters_lens.judge.prompt_files import FeatureClass, load_prompts
from tc_adapters_lens.judge.request import Form
from tests.features.builder import HOSTILE

DETECT = "system: Say which.\nuser: '{{ description }}: {% for text in texts %}{{ text | tojson }} {% endfor %}'\n"
CLASSES = "classes:\n- {name: a, description: the first}\n- {name: b, description: the second, group: c}\n"
CLASSIFY = CLASSES + "system: s\nuser: '{% for one in classes %}{{ one.name }}={{ one.group }} {% endfor %}'\n"


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_is_read_and_named_by_its_content(written) -> None:
    path = written(CLASSIFY)
    prompts = load_prompts("classify", path)
    assert prompts.classes == (FeatureClass("a", "the first", "a"), FeatureClass("b", "the second", "c"))
    assert prompts.to_dict() == {"name": "mine.yaml", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    request = prompts.request(Form, {"k": 1}, examples=[])
    assert (request.task, request.system, request.user) == ("classify", "s", "a=a b=c")
    assert (request.form, request.facts) == (Form, {"k": 1})


def test_texts_stay_texts(written) -> None:
    prompts = load_prompts("detect", written(DETECT))
    texts = [*HOSTILE, "{{ 7*7 }} {% raw %}", "ends with \\", '"quoted"', "€ << >>", "\u2028"]
    user = prompts.request(Form, {}, description="d", texts=texts).user
    rest = user.removeprefix("d: ")
    found = []
    while rest:
        text, end = json.JSONDecoder().raw_decode(rest)
        found.append(text)
        rest = rest[end:].lstrip(" ")
    assert found == texts
    assert "€ << >>" in user  # as it is to be read, not as \u003c


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("detect", "- a", r"must have the keys system, user\. Got list"),
        ("detect", "system: a", r"must have the keys system, user\. Got system"),
        ("detect", CLASSIFY, r"must have the keys system, user\. Got classes, system, user"),
        ("classify", DETECT, r"must have the keys classes, system, user"),
        ("detect", "system: [a\n", r"must be a YAML file\. .* is not"),
        ("detect", "system: 1\nuser: b", r"must have a text as system\. Got 1"),
        ("detect", "system: a\nuser: '{{ description'", r"must have a Jinja template as user"),
        ("detect", "system: a\nuser: '{{ texs }}'", r"may name description, texts\. Got texs\. Did you mean 'texts'"),
        ("classify", CLASSIFY.replace("name: b", "name: a"), r"must name a class once\. Got 'a' twice"),
        ("classify", "classes: [{name: a, description: b}]\nsystem: a\nuser: b", r"two classes or more"),
        ("classify", CLASSIFY.replace("name: b", "nam: b"), r"each with name and description"),
        ("classify", CLASSIFY.replace("name: b", "name: 1"), r"all texts\. Got"),
        ("classify", CLASSIFY.replace("group: c", "group: ' '"), r"all texts\. Got"),
    ],
)
def test_what_a_file_must_be(written, task, text, message) -> None:
    with pytest.raises(JudgeError, match=message) as caught:
        load_prompts(task, written(text))
    assert "mine.yaml" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(JudgeError, match=r"none\.yaml cannot be read: No such file"):
        load_prompts("detect", tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"system: \xff")
    with pytest.raises(JudgeError, match=r"must be a YAML file"):
        load_prompts("detect", tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "template",
    [
        "{{ texts.length }}",
        "{{ 1 / 0 }}",
        "{{ texts + 1 }}",
        "{{ description.__class__.__mro__ }}",
        "{% include 'a' %}",
    ],
)
def test_a_template_that_does_not_work(written, template) -> None:
    prompts = load_prompts("detect", written(f'system: a\nuser: "{template}"'))
    with pytest.raises(JudgeError, match=r"templates that work\. mine\.yaml does not"):
        prompts.request(Form, {}, description="d", texts=["t"])


def test_the_package_s_own_classes() -> None:
    prompts = load_prompts("classify")
    assert [one.name for one in prompts.classes if one.group == "reasoning"] == [
        "reasoning output",
        "reasoning input",
        "reasoning abstract",
    ]
    assert [one.name for one in prompts.classes if one.group == one.name] == [
        "general language",
        "domain",
        "uninterpretable",
    ]
    assert prompts.name == "classify.yaml"
