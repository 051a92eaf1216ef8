"""Configuration files: what is accepted, and what each mistake says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from inazuma.config import from_dict, load, to_dict
from inazuma.errors import UserError


@dataclass(frozen=True)
class Stage:
    kind: Literal["dense", "warmup", "sparse"]
    tokens: int
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.tokens <= 0:
            raise ValueError("tokens must be positive")


@dataclass
class Optimizer:
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    widths: tuple[int, ...] = ()
    derived: int = field(default=7, init=False)


@dataclass
class Recipe:
    data: Path
    stages: list[Stage]
    optimizer: Optimizer = field(default_factory=Optimizer)
    compile: bool = False
    name: str = "run"
    extra: dict[str, float] = field(default_factory=dict)
    size: Literal["auto"] | int = "auto"
    anything: Any = None


GOOD = """
data: corpus/books
stages:
  - {kind: dense, tokens: 1_000_000, learning_rate: 1e-3}
  - kind: sparse
    tokens: 2e6
optimizer: {betas: [0.9, 1], clip: null, widths: [1, 2, 3]}
extra: {a: 1, b: .5}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistake(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(Recipe, written(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path) + "/", "")


def test_every_kind_of_value_is_read(tmp_path):
    recipe = load(Recipe, written(tmp_path, GOOD))
    assert recipe == Recipe(
        data=Path("corpus/books"),
        stages=[Stage("dense", 1_000_000, 0.001), Stage("sparse", 2_000_000)],
        optimizer=Optimizer(betas=(0.9, 1.0), clip=None, widths=(1, 2, 3)),
        extra={"a": 1.0, "b": 0.5},
    )
    # The types, not only equal values: 1 == 1.0 == True in Python.
    assert type(recipe.optimizer.betas[1]) is float and type(recipe.stages[1].tokens) is int
    assert type(recipe.extra["a"]) is float


def test_plain_values_survive_json(tmp_path):
    recipe = load(Recipe, written(tmp_path, GOOD))
    plain = json.loads(json.dumps(to_dict(recipe), allow_nan=False))
    assert plain["data"] == "corpus/books" and plain["optimizer"]["betas"] == [0.9, 1.0]
    assert "derived" not in plain["optimizer"]
    assert from_dict(Recipe, plain, where="manifest") == recipe


def test_overrides_reach_sections_lists_and_absent_fields(tmp_path):
    recipe = load(
        Recipe,
        written(tmp_path, GOOD),
        ["stages.1.tokens=5", "optimizer.betas=[0.8, 0.9]", "name=a=b", "size=12", "extra.c=1e-2", "optimizer.clip=2"],
    )
    assert recipe.stages[1].tokens == 5 and recipe.stages[0].tokens == 1_000_000
    assert recipe.optimizer == Optimizer(betas=(0.8, 0.9), clip=2.0, widths=(1, 2, 3))
    assert (recipe.name, recipe.size, recipe.extra["c"]) == ("a=b", 12, 0.01)


def test_an_override_makes_the_section_that_the_file_leaves_out(tmp_path):
    recipe = load(Recipe, written(tmp_path, "data: x\nstages: []"), ["optimizer.clip=null"])
    assert recipe.optimizer == Optimizer(clip=None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name", "--set name: expected section.field=value"),
        ("a..b=1", "--set a..b=1: expected section.field=value"),
        ("stages.2.tokens=1", "--set stages.2.tokens=1: stages.2: the list has items 0 to 1, not '2'"),
        ("name.x.y=1", None),
        ("data.x=1", "--set data.x=1: data.x: data is the text 'corpus/books' and has no fields"),
        ("name=[", "--set name=[: line 1: not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere(tmp_path, override, message):
    found = mistake(tmp_path, GOOD, override)
    if message is None:
        # `name` is not in the file: the override makes a section of it, and the type is what objects.
        message = "recipe.yaml with --set name.x.y=1: name: expected text, found a mapping"
    assert found.startswith(message)


def test_an_override_into_a_list_the_file_lacks(tmp_path):
    assert mistake(tmp_path, "data: x", "stages.0.tokens=1") == (
        "--set stages.0.tokens=1: stages: the file has no such list; write the list there first"
    )


@pytest.mark.parametrize(
    ("replace", "by", "message"),
    [
        ("clip", "clpi", "recipe.yaml: optimizer.clpi: unknown key; did you mean 'clip'?"),
        ("extra", "zzzz", "recipe.yaml: zzzz: unknown key; known are data, stages, optimizer, compile"),
        ("data: corpus/books", "name: x", "recipe.yaml: data: missing; expected a path"),
        ("tokens: 2e6", "learning_rate: 1", "recipe.yaml: stages.1.tokens: missing; expected a whole number"),
        ("2e6", "-2", "recipe.yaml: stages.1: tokens must be positive"),
        ("2e6", "1.5", "recipe.yaml: stages.1.tokens: expected a whole number, found the number 1.5"),
        ("2e6", "1e-1", "recipe.yaml: stages.1.tokens: expected a whole number, found the text '1e-1'"),
        ("2e6", "'12'", "recipe.yaml: stages.1.tokens: expected a whole number, found the text '12'"),
        ("2e6", "true", "recipe.yaml: stages.1.tokens: expected a whole number, found true"),
        ("2e6", ".inf", "recipe.yaml: stages.1.tokens: expected a whole number, found the number inf"),
        ("1e-3", "true", "recipe.yaml: stages.0.learning_rate: expected a finite number, found true"),
        ("1e-3", ".nan", "recipe.yaml: stages.0.learning_rate: expected a finite number, found the number nan"),
        ("1e-3", "1e999", "recipe.yaml: stages.0.learning_rate: expected a finite number, found the text '1e999'"),
        ("1e-3", "fast", "recipe.yaml: stages.0.learning_rate: expected a finite number, found the text 'fast'"),
        ("kind: sparse", "kind: spare", "recipe.yaml: stages.1.kind: expected one of 'dense', 'warmup', 'sparse', fo"),
        ("[0.9, 1]", "[0.9]", "recipe.yaml: optimizer.betas: expected a list of 2 items"),
        ("[0.9, 1]", "[0.9, x]", "recipe.yaml: optimizer.betas.1: expected a finite number, found the text 'x'"),
        ("[1, 2, 3]", "3", "recipe.yaml: optimizer.widths: expected a list (of a whole number), found the number 3"),
        ("{a: 1, b: .5}", "{1: 1}", "recipe.yaml: extra.1: expected a key of text, found the number 1; quote it"),
        ("{a: 1, b: .5}", "[]", "recipe.yaml: extra: expected a mapping (to a finite number), found a list"),
        ("corpus/books", "2024-01-01", "recipe.yaml: data: expected a path, found the date 2024-01-01"),
        ("corpus/books", "2024-13-01", "recipe.yaml: not valid YAML (month must be in 1..12"),
        ("extra:", "compile: 1\nextra:", "recipe.yaml: compile: expected true or false, found the number 1"),
        ("extra:", "name: on\nextra:", "recipe.yaml: name: expected text, found true (quote it"),
        ("extra:", "size: big\nextra:", "recipe.yaml: size: expected one of 'auto' or a whole number, found the text"),
        ("extra:", "data: y\nextra:", "recipe.yaml: line 8: not valid YAML (the key 'data' is written twice)"),
        ("null", "null, clip: 2", "recipe.yaml: line 7: not valid YAML (the key 'clip' is written twice)"),
        ("extra: {", "extra: }", "recipe.yaml: line 8: not valid YAML"),
        ("extra:", "- x\nextra:", "recipe.yaml: line 8: not valid YAML"),
    ],
)
def test_a_mistake_names_file_field_and_remedy(tmp_path, replace, by, message):
    assert replace in GOOD
    assert mistake(tmp_path, GOOD.replace(replace, by, 1)).startswith(message)


def test_files_that_are_no_configuration(tmp_path):
    assert mistake(tmp_path, "- 1") == "recipe.yaml: expected a mapping of fields, found a list"
    assert mistake(tmp_path, "") == "recipe.yaml: data: missing; expected a path"
    assert mistake(tmp_path, "a: !!python/object:os.system {}").startswith("recipe.yaml: line 1: not valid YAML")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        load(Recipe, tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml: not a text file"):
        load(Recipe, tmp_path / "binary.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load(Recipe, tmp_path)


def test_merge_keys_are_not_duplicates(tmp_path):
    text = "data: x\nstages:\n  - &a {kind: dense, tokens: 1}\n  - &b {<<: *a, tokens: 2}\n  - {<<: *b, tokens: 3}\n"
    assert [stage.tokens for stage in load(Recipe, written(tmp_path, text)).stages] == [1, 2, 3]
