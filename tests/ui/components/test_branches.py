"""The tree of a text's branches, and its place in links and exported files."""

import json

import gradio as gr
import pytest
from starlette.datastructures import QueryParams

from deepseek import SamplingParams
from deepseek.inference.generation_record import parse_record
from deepseek.ui.components import branches, share
from deepseek.ui.generation import add_branch, generate

PARAMS = SamplingParams(seed=7, max_new_tokens=12, top_k=40)


@pytest.fixture(scope="module")
def family(demo):
    """Three texts: the first, one that branches off at token 5, and one that branches off that at token 9."""

    def sample(forced, known=None):
        *_, generation = generate(*demo, "Once upon a time", PARAMS, forced, known)
        return generation

    def other(generation, position):
        return next(c.id for c in generation.tokens[position].candidates if c.id != generation.tokens[position].id)

    first = sample({})
    second = sample({4: other(first, 4)}, first.branches)
    third = sample(second.forced_tokens | {8: other(second, 8)}, first.branches)
    return first, second, third


def test_every_alternative_stays_and_the_tree_shows_it_below_the_text_that_it_left(family):
    first, second, third = family
    assert list(first.branches.values()) == [first, second, third] and third.branches is first.branches
    rows = json.loads(branches.tree(second))["rows"]
    assert [(row["depth"], row["label"], row["chosen"]) for row in rows] == [
        (0, "first text", False), (1, "token 5", True), (2, "token 9", False),
    ]  # fmt: skip
    assert [text for text, _ in rows[2]["tokens"]] == [token.text for token in third.tokens[8:]]
    assert branches.named(first, rows[2]["id"]) == third.branch and branches.named(first, "") == ()
    for name in ("4-1", None, 5, "x" * 99):
        with pytest.raises(gr.Error, match="^.branch is .*; it must be one of the tree's"):
            branches.named(first, name)


def test_a_branch_keeps_the_choices_before_it_and_their_number_is_limited(family):
    first, second, third = family
    assert branches.branch_at(third, 8, 5) == (*second.branch, (8, 5))
    assert branches.branch_at(third, 2, 5) == ((2, 5),) and branches.branch_at(third, 4, 6) == ((4, 6),)
    many = type(first)("Once", PARAMS, {}, {((n, 1),): None for n in range(branches.MAX_BRANCHES)})
    assert branches.branch_at(many, 3, 1) == ((3, 1),)  # there already
    with pytest.raises(gr.Error, match="branches are 30, the most that are kept"):
        branches.branch_at(many, 3, 2)


def test_any_two_are_compared(family):
    first, second, third = family
    *_, choice, hidden = branches.show(third)
    assert [name for _, name in choice["choices"]] == ["", branches.branch_name(second.branch)] and not hidden[
        "visible"
    ]
    shown, strip, rows = branches.show_comparison(third, branches.branch_name(second.branch))
    assert shown["visible"] and strip == second.strip + '{"mark": 8}\n'
    assert rows[0] == ["first different token", "9", "9"] and rows[1] == ["tokens", "12", "12"]


def test_a_link_and_an_exported_file_hold_the_other_branches(family, tmp_path):
    first, second, third = family
    link = QueryParams(share.query_of(first, "assets/demo"))
    assert share.from_query(link, 8192) == ("Once upon a time", PARAMS, {})
    assert list(share.branches_from_query(link, 8192)) == [(), second.branch, third.branch]
    assert "branches" not in QueryParams(share.query_of(third, "assets/demo"))  # its own choices imply the others
    with open(share.export_file(second)) as file:
        record = parse_record(file.read())
    assert [token["id"] for token in record["tokens"]] == [token.id for token in second.tokens]
    assert [branch["text"] for branch in record["branches"]] == [
        t.text.removeprefix("Once upon a time") for t in (first, third)
    ]
    assert record["branches"][1]["forced"] == {str(p): id for p, id in third.branch}
    assert record["branches"][0]["ids"] == [token.id for token in first.tokens]
    for wrong in ("x", "4-9999", "4", "4-1.", "-1-1"):
        with pytest.raises(
            ValueError, match="^branches is .*; it must be a position, a dash and a token's id below 8192"
        ):
            share.branches_from_query(QueryParams({"branches": wrong}), 8192)
    with pytest.raises(ValueError, match="^branches are over 30"):
        share.branches_from_query(QueryParams({"branches": ".".join(f"{n}-1" for n in range(31))}), 8192)


def test_only_the_ends_of_the_tree_are_named():
    known = {}
    for branch in (((1, 5), (7, 2)), ((1, 6),), ()):
        add_branch(known, branch)
    assert sorted(known) == [(), ((1, 5),), ((1, 5), (7, 2)), ((1, 6),)]
    assert branches.leaves(known) == [((1, 5), (7, 2)), ((1, 6),)] and branches.leaves([()]) == []
