"""What differs between two samples, as a table."""

from dataclasses import asdict

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.inference.text_stats import sample_stats
from deepseek.ui.generation import Generation, first_difference


def changed_settings(a: SamplingParams, b: SamplingParams) -> dict[str, tuple]:
    """The settings that differ: {name: (value in a, value in b)}."""
    values_b = asdict(b)
    return {name: (value, values_b[name]) for name, value in asdict(a).items() if value != values_b[name]}


def report(a: Generation, b: Generation, checkpoints: tuple[str, str]) -> list[list[str]]:
    """Rows (what, A, B) of the table: the checkpoints and settings that differ, the first difference, the statistics."""
    rows = [["checkpoint", *checkpoints]] if checkpoints[0] != checkpoints[1] else []
    for name, values in changed_settings(a.params, b.params).items():
        rows.append([name.replace("_", " "), *map(str, values)])
    position = first_difference(a, b)
    rows.append(["first different token", *(["none"] * 2 if position is None else [str(position + 1)] * 2)])
    stats_a, stats_b = sample_stats(a.tokens), sample_stats(b.tokens)
    for name, value in stats_a.items():
        values = (f"{v:.3f}" if v < 1 else f"{v:.0f}" for v in (value, stats_b[name]))
        rows.append([name.replace("_grams", "-grams").replace("_", " "), *values])
    return rows


def report_table(rows: list[list[str]], names: tuple[str, str]) -> gr.Dataframe:
    """Draws the table of a `report` on two samples with these names."""
    options = dict(column_widths=["46%", "27%", "27%"], show_label=False, interactive=False, wrap=True)
    return gr.Dataframe(rows, headers=["what", *names], **options)
