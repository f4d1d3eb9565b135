"""Every mistake in a recipe is found before anything runs, with its line."""

from __future__ import annotations

import re

import pytest

from surgery.errors import RecipeError
from surgery.recipes import Recipe, Step, parse_recipe, run
from surgery.recipes.document import LONGEST

# What is wrong, the recipe, the line and column, and what the message has to say.
WRONG = {
    "empty": ("", "1:1", "a mapping"),
    "a list": ("- target: a:b", "1:1", "a mapping"),
    "no target": ("seed: 3", "1:1", "'target'"),
    "target twice": ("target: a:b\ntarget: c:d", "2:1", "twice"),
    "a misspelt part": ("target: a:b\nstep: []", "2:1", "steps"),
    "target is a number": ("target: 3", "1:9", "catalog"),
    "negative seed": ("target: a:b\nseed: -1", "2:7", "0 to"),
    "seed is true": ("target: a:b\nseed: true", "2:7", "whole number"),
    "seed is text": ("target: a:b\nseed: '1'", "2:7", "whole number"),
    "no classes": ("target: a:b\nnum_classes: 0", "2:14", "from 1"),
    "steps is a mapping": ("target: a:b\nsteps: {freeze: {}}", "2:8", "list of steps"),
    "unknown verb": ("target: a:b\nsteps:\n- freese: {}", "3:3", "freeze"),
    "a step is text": ("target: a:b\nsteps:\n- freeze", "3:3", "one verb"),
    "two verbs in a step": (
        "target: a:b\nsteps:\n- freeze: {}\n  unfreeze: {}",
        "3:3",
        "one verb",
    ),
    "an empty step": ("target: a:b\nsteps:\n- {}", "3:3", "one verb"),
    "unknown argument": ("target: a:b\nsteps:\n- freeze: {excpt_: fc}", "3:12", "except_"),
    "argument is no mapping": ("target: a:b\nsteps:\n- freeze: fc", "3:11", "by name"),
    "fraction of classes": (
        "target: a:b\nsteps:\n- replace_head: {num_classes: 5.0}",
        "3:31",
        "whole number",
    ),
    "new head of no size": (
        "target: a:b\nsteps:\n- replace_head: {hidden: [3]}",
        "3:17",
        "num_classes or classes",
    ),
    "certain dropout": (
        "target: a:b\nsteps:\n- replace_head: {num_classes: 2, dropout: 1}",
        "3:43",
        "below 1",
    ),
    "numbers as names": (
        "target: a:b\nsteps:\n- replace_head: {classes: [1, b]}",
        "3:28",
        "quotes",
    ),
    "address without quotes": (
        "target: a:b\nsteps:\n- replace_head: {heads: {2: 5}}",
        "3:25",
        "by address",
    ),
    "keep is a list": (
        "target: a:b\nsteps:\n- replace_head: {num_classes: 2, keep: [0]}",
        "3:40",
        "old ones by new ones",
    ),
    "unknown init": (
        "target: a:b\nsteps:\n- replace_head: {num_classes: 2, init: ones}",
        "3:40",
        "zeros",
    ),
    "nothing to adapt": ("target: a:b\nsteps:\n- adapt_input: {how: sum}", "3:16", "in_channels"),
    "mean is one": ("target: a:b\nsteps:\n- adapt_input: {mean: [1]}", "3:23", "pair"),
    "no source": ("target: a:b\nsteps:\n- load_weights: {drop: fc}", "3:17", "source"),
    "coverage of two": (
        "target: a:b\nsteps:\n- load_weights: {source: w, min_coverage: 2}",
        "3:43",
        "0 to 1",
    ),
    "no such policy": (
        "target: a:b\nsteps:\n- load_weights: {source: w, on_mismatch: adopt}",
        "3:42",
        "adapt",
    ),
    "no regular expression": (
        "target: a:b\nsteps:\n- load_weights: {source: w, rename: [['(', b]]}",
        "3:39",
        "regular expression",
    ),
    "no donor": ("target: a:b\nsteps:\n- transplant: {freeze: true}", "3:15", "donor"),
    "mapping to a number": (
        "target: a:b\nsteps:\n- transplant: {donor: w, mapping: {a: 1}}",
        "3:39",
        "an address",
    ),
    "expects nobody knows what": ("target: a:b\nexpect: parameter < 3", "2:9", "parameters"),
    "expects no comparison": ("target: a:b\nexpect: parameters", "2:9", "holds or does not"),
    "expects broken text": ("target: a:b\nexpect: parameters <", "2:9", "no expression"),
    "expects a call": ("target: a:b\nexpect: open('x') == 1", "2:9", "not understood"),
    "expects an attribute": ("target: a:b\nexpect: heads.keys == 1", "2:9", "not understood"),
    "expects a power": ("target: a:b\nexpect: 9 ** 9 ** 9 > parameters", "2:9", "not understood"),
    "compares text with a number": (
        "target: a:b\nexpect: parameters == '3'",
        "2:9",
        "never equals",
    ),
    "expects in a step": ("target: a:b\nsteps:\n- expect: heads < 3", "3:11", "order"),
    "expects a number": ("target: a:b\nexpect: 3", "2:9", "expression"),
    "no example": ("target: a:b\nexample: big", "2:10", "shape"),
    "example of no size": ("target: a:b\nexample: [0, 3]", "2:10", "shape"),
    "no yaml": ("target: a:b\nsteps: [", "2:9", "no YAML"),
    "a colon in text": ("target: a:b\nexpect: heads == {'fc': 3}", "2:23", "quotes"),
    "a tab": ("target: a:b\nsteps:\n\t- freeze: {}", "3:1", "no YAML"),
    "two documents": ("target: a:b\n---\ntarget: c:d", "2:1", "one recipe"),
    "an alias": ("target: &t a:b\noutput: *t", "1:9", "no anchors"),
    "a merge": ("target: a:b\noptions: {<<: {a: 1}, b: !!merge 3}", "2:26", "plain data"),
    "a tag that constructs": (
        "target: !!python/object/apply:os.system ['true']",
        "1:9",
        "plain data",
    ),
    "a key that is a list": ("target: a:b\noptions: {[1]: 2}", "2:11", "a key is text"),
    "an endless number": ("target: a:b\nseed: " + "9" * 5000, "2:7", "plain data"),
    "nested too deep": ("target: a:b\noptions: " + "[" * 5000, "2:41", "nested too deep"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_found_at_its_place(name: str):
    text, place, said = WRONG[name]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    assert caught.value.where == f"r.yaml:{place}", str(caught.value)
    assert said in str(caught.value)
    assert caught.value.fix


def test_all_mistakes_are_told_at_once_and_in_order():
    pieces = [(text.removeprefix("target: a:b\n"), said) for text, _, said in WRONG.values()]
    steps = [
        (re.sub(r"^steps:\n", "", text), said)
        for text, said in pieces
        if text.startswith("steps:\n- ") and "\n  " not in text
    ]
    document = "target: a:b\nsteps:\n" + "\n".join(text for text, _ in steps)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document, "r.yaml")
    assert caught.value.what == f"{len(steps)} things are wrong in this recipe"
    lines = [int(n) for n in re.findall(r"r\.yaml:(\d+):", str(caught.value.found))]
    assert lines == list(range(3, 3 + len(lines)))
    assert len(lines) == 20
    assert "more" in str(caught.value.found)


def test_a_bomb_of_aliases_is_refused_where_it_begins():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(RecipeError, match="no anchors"):
        parse_recipe("\n".join(rows))


def test_a_long_file_is_refused_before_it_is_parsed():
    with pytest.raises(RecipeError, match="too long"):
        parse_recipe("#" * (LONGEST + 1))


def test_a_file_that_is_none_is_refused(tmp_path):
    from surgery.recipes import read_recipe

    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00target")
    for path in (tmp_path / "r.yaml", tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            read_recipe(path)
        assert caught.value.where == str(path)


def test_a_recipe_made_in_python_is_checked_as_well():
    with pytest.raises(RecipeError) as caught:
        run(Recipe("a:b", (Step("replace_head", {"num_classes": 0}),)))
    assert caught.value.where == "recipe.steps[0].replace_head.num_classes"


def test_words_that_other_yaml_takes_for_truth_numbers_and_dates_are_names():
    text = (
        "target: a:b\nsteps:\n- replace_head:\n    classes: [no, on, y, 1:30, 2020-01-01, 007, 0x1]"
    )
    step = parse_recipe(text).steps[0]
    assert step.arguments["classes"] == ["no", "on", "y", "1:30", "2020-01-01", "007", "0x1"]
