"""The branches of a text as a tree: every alternative that was tried, to go to and to compare with the one shown."""

from collections.abc import Iterable

import gradio as gr

from deepseek.ui.components.comparison import report, report_table
from deepseek.ui.components.token_strip import mark_line, token_strip
from deepseek.ui.components.token_tree import row, token_tree, tree_value
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import Branch, Generation, first_difference

MAX_BRANCHES = 30  # of a text, each with its traces
MAX_ROW_TOKENS = 40


def branch_name(branch: Branch) -> str:
    """A branch as links and the page's script write it: its forced tokens as position-id, with dots between."""
    return ".".join(f"{position}-{token}" for position, token in branch)


def leaves(branches: Iterable[Branch]) -> list[Branch]:
    """The branches that no other one continues; they imply the rest."""
    known = sorted(set(branches))
    return [a for a, b in zip(known, [*known[1:], ()]) if b[: len(a)] != a]


@user_errors()
def branch_at(generation: Generation, position: int, token: int) -> Branch:
    """The branch off a text with another token at a position. Raises gr.Error for one too many."""
    branch = (*(pair for pair in generation.branch if pair[0] < position), (position, token))
    if branch not in generation.branches and len(generation.branches) >= MAX_BRANCHES:
        raise ValueError(
            f"branches are {len(generation.branches)}, the most that are kept; generate a new text to go on."
        )
    return branch


@user_errors()
def named(generation: Generation, name) -> Branch:
    """The branch of a text by its `branch_name`. Raises gr.Error for an unknown one."""
    names = {branch_name(branch): branch for branch in generation.branches}
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"branch is {name!r:.40}; it must be one of the tree's.")
    return names[name]


def _label(branch: Branch) -> str:
    return f"token {branch[-1][0] + 1}" if branch else "first text"


def tree(generation: Generation) -> str:
    """The value of the tree: a row per branch, from the token on with which it branches off."""
    rows = []
    for branch in sorted(generation.branches):
        sampled, start = generation.branches[branch], branch[-1][0] if branch else 0
        tokens = sampled.tokens[start : start + MAX_ROW_TOKENS] if sampled else []
        note = f"{len(sampled.tokens)} tokens" if sampled else "not sampled yet"
        chosen = branch == generation.branch
        rows.append(row(len(branch), _label(branch), tokens, note, id=branch_name(branch), chosen=chosen))
    return tree_value(rows)


def show(generation: Generation) -> list:
    """The updates of the area, the tree, the choice of a text to compare with, and the comparison, for a new text."""
    others = [b for b in sorted(generation.branches) if generation.branches[b] and b != generation.branch]
    choices = []
    for branch in others:
        token = generation.branches[branch].tokens[branch[-1][0]].text if branch else ""
        choices.append((_label(branch) + (f": {token.strip()}" if branch else ""), branch_name(branch)))
    is_tree = gr.update(visible=len(generation.branches) > 1)
    return [is_tree, tree(generation), gr.update(choices=choices, value=None), gr.update(visible=False)]


def show_comparison(generation: Generation, name: str | None) -> list:
    """The updates of the comparison, the other text's strip with a bar where it parts, and the table."""
    other = generation.branches[named(generation, name)]
    position = first_difference(generation, other)
    strip = other.strip + ("" if position is None else mark_line(position))
    return [gr.update(visible=True), strip, report(generation, other, (generation.checkpoint, other.checkpoint))]


def build() -> tuple[list, list]:
    """Draws the branches, hidden while there is one text; returns the components of `show`, and those of `show_comparison`."""
    with gr.Column(visible=False, elem_id="branches") as area:
        gr.Markdown("### Branches\nEvery text that you tried, from the token on that you chose. Click one to go there.")
        value = token_tree("branch-tree", "the branches of this text")
        other = gr.Dropdown([], value=None, label="compare this text with")
        with gr.Column(visible=False) as comparison:
            strip = token_strip("strip-other", "probability", "the other text; the bar marks where it parts", "")
            figures = report_table([], ("this text", "the other"))
    return [area, value, other, comparison], [comparison, strip, figures]
