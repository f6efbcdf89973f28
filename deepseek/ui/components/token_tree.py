"""Texts as a tree: a row for the tokens of each part, indented below the row that it continues. Drawn by tree.js."""

from collections.abc import Sequence

import gradio as gr

from deepseek.inference.sweep import SharedTokens
from deepseek.ui.components.token_strip import ASSETS, script_json

SCRIPT = "".join((ASSETS / name).read_text("utf-8") for name in ("tokens.js", "tree.js"))


def token_tree(elem_id: str, label: str, value: str = "", **options) -> gr.HTML:
    """A tree of `value`, made by `tree_value`; screen readers announce `label`. `options` are gradio's."""
    template = f'<div class="tree" role="list" aria-label="{label}"></div>'
    return gr.HTML(html_template=template, js_on_load=SCRIPT, elem_id=elem_id, value=value, **options)


def row(depth: int, label: str, tokens: Sequence, note: str, **options) -> dict:
    """A row: its name, TokenTraces coloured by probability, and a remark; with `chosen` it can be selected."""
    texts = [[token.text, round(token.probability, 3)] for token in tokens]
    return {"depth": depth, "label": label, "tokens": texts, "note": note, **options}


def tree_value(rows: Sequence[dict]) -> str:
    """The value of a tree of `row`s."""
    return script_json({"rows": list(rows)})


def shared_rows(node: SharedTokens, names: Sequence[str], notes: Sequence[str], depth: int = 0) -> list[dict]:
    """The rows of a prefix tree of outputs with these names and notes: a shared part is named after its first token."""
    if node.children:
        where = f"token {node.position + len(node.tokens) + 1}"
        rows = [row(depth, f"{len(node.samples)} samples", node.tokens, f"part at {where}")]
    else:
        label = ", ".join(names[sample] for sample in node.samples)
        rows = [row(depth, label, node.tokens, notes[node.samples[0]])]
    return rows + [line for child in node.children for line in shared_rows(child, names, notes, depth + 1)]
