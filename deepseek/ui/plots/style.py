"""Records -> plotly figures. Here what all of them share: colours, labels, axes.

Every token is shown as text: `label` escapes what plotly would read as markup and makes invisible characters visible.
"""

import html
import unicodedata

import numpy as np
import plotly.graph_objects as go

# Okabe and Ito's colours, told apart by colour-blind readers, with grey for their black; one per expert, everywhere.
EXPERT_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#A6A6A6"]
SEQUENTIAL = [[0, "rgba(41,140,230,0.05)"], [0.25, "rgba(41,140,230,0.5)"], [1, "rgb(41,140,230)"]]
TEXT = "#7b8494"  # readable on dark and light; the page's style sheet replaces it with the theme's own
MAX_LABELS = 48  # more token labels than this overlap


def expert_colour(expert: int) -> str:
    """The colour of an expert; beyond eight they come again."""
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def show_invisible(text: str) -> str:
    """One token's text with spaces, line ends, control and invisible characters shown by a sign."""
    shown = []
    for character in text:
        if character == "\n":
            shown.append("↵")
        elif character == "\t":
            shown.append("⇥")
        elif ord(character) < 32:
            shown.append(chr(0x2400 + ord(character)))
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"U+{ord(character):04X}")
        else:
            shown.append(character)
    text = "".join(shown)
    return "·" + text[1:] if text.startswith(" ") else text or "…"


def label(text: str) -> str:
    """`visible`, cut to 16 characters and escaped for plotly, which reads a few tags in labels."""
    text = show_invisible(text)
    return html.escape(text if len(text) <= 16 else text[:15] + "…", quote=False)


def layout(figure: go.Figure, height: int, **options) -> go.Figure:
    """`figure` in the project's looks, `height` pixels high; `options` are plotly's own."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=dict(color=TEXT, size=12),
        height=height,
        margin=dict(l=60, r=10, t=30, b=48),
        **options,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    return figure


def token_axis(tokens: list[str], first: int = 0) -> tuple[list[str], dict]:
    """Unique category names, one a token, and the axis that shows them without their number (or every nth of many).

    Tokens are numbered from `first`.
    """
    names = [f"{index} {label(token)}" for index, token in enumerate(tokens, first)]
    step = max(1, -(-len(names) // MAX_LABELS))
    axis = dict(
        type="category",
        tickmode="array",
        tickvals=names[::step],
        ticktext=[label(token) for token in tokens[::step]],
        tickfont=dict(size=11),
    )
    return names, axis


def percent(weights) -> np.ndarray:
    """Weights in [0, 1] as whole percents in one byte each, to keep a 512 x 512 map small."""
    return np.round(np.asarray(weights) * 100).astype(np.uint8)
