"""The Train tab's film: curves of how a run's routers changed, and the routing at the checkpoint that the slider is on."""

from functools import lru_cache
from pathlib import Path

import gradio as gr

from deepseek.interpret import routing_stats
from deepseek.training import router_history
from deepseek.training.metrics import History
from deepseek.training.router_history import RouterRecord
from deepseek.ui.components.view import changed, figure
from deepseek.ui.plots import router_history as plots
from deepseek.ui.plots import routing, training

PLAYER = (Path(__file__).parents[3] / "assets" / "film.js").read_text("utf-8")
PLAYER_HTML = """
    <div class="film" role="group" aria-label="play the checkpoints">
      <button class="back" aria-label="previous checkpoint" title="previous checkpoint">◀</button>
      <button class="play" aria-label="play" title="play">▶ play</button>
      <button class="next" aria-label="next checkpoint" title="next checkpoint">▶|</button>
    </div>"""
EXPLANATION = """### How routing settled
The same tokens, a text and the beginning of a few held-out ones, are routed again at every checkpoint.

- **Router saturation**: how many choices are already those of the newest checkpoint, of the first expert and of all.
- **Vocabulary specialization**: how often a token that comes again goes to the same expert.
- **Co-activation**: how many of an expert's tokens also go to its most frequent partner.
- **MaxVio**: how far the busiest expert is above an even load. The **balancing bias** pushes tokens away from it.

Dotted is chance: the same load on every expert, but choices at random. The upright line is the checkpoint shown below."""
_curves = lru_cache(maxsize=4)(router_history.router_curves)  # a film shows the same ones at every step


def build() -> dict[str, gr.components.Component]:
    """Adds the panel, hidden; returns by name the components that `redraw` updates."""
    p = {}
    with gr.Column(visible=False) as p["probes"]:
        gr.Markdown(EXPLANATION)
        p["router curves"] = figure(None, "router-curves")
        gr.Markdown("Routing change between checkpoints: fraction of tokens with a different expert, over all layers.")
        p["routing change"] = figure(None, "routing-change")
        gr.Markdown(
            "### The film\nMove the slider, or play it, to see which expert got each token at an earlier checkpoint."
        )
        p["probe index"] = gr.Slider(0, 1, 0, step=1, label="checkpoint", elem_id="probe-at")
        gr.HTML(html_template=PLAYER_HTML, js_on_load=PLAYER, value="")
        p["probe note"] = gr.Markdown("", elem_id="probe-note")
        p["probe"] = figure(None, "probe", elem_classes="wide")
        p["chosen probe"] = gr.JSON(visible=False)  # where the user put the slider, and of which run; null at its end
        p["film layer"] = gr.Dropdown([], label="layer", info="of the figures below", elem_id="film-layer")
        with gr.Row():
            with gr.Column(min_width=320):
                gr.Markdown("**Load and balancing bias.** Dashed is an even load.")
                p["film experts"] = figure(None, "film-experts")
            with gr.Column(min_width=320):
                gr.Markdown(
                    "**Co-activation.** How often two experts get the same token; 1 is what their loads predict."
                )
                p["film pairs"] = figure(None, "film-pairs", elem_classes="inked")
        gr.Markdown("**Vocabulary specialization.** The tokens that each expert got most often.")
        p["film vocabulary"] = figure(None, "film-vocabulary", elem_classes=["inked", "wide"])
    return p


def redraw(p: dict, shown: dict, history: History, chosen_index: int | None, layer: int | None) -> dict:
    """{component: update} for what changed since the page got what it has `shown`.

    `chosen_index` is where the user put the slider, or None to follow the newest; its place is left to the page, for which
    `shown` has the "newest probe". `layer` is the layer chosen in the dropdown.
    """
    updates, newest = {}, len(history.probes) - 1
    shown["newest probe"] = newest
    if changed(shown, "probes", newest):
        updates[p["probes"]] = gr.update(visible=newest > 0)
        if newest > 0:
            updates[p["probe index"]] = gr.update(maximum=newest)
            updates[p["routing change"]] = training.routing_change_bars(history)
    if newest <= 0:
        return updates
    layers = history.router_records[-1].layers
    layer = layer if layer in layers else layers[0]
    if changed(shown, "film layers", layers):
        updates[p["film layer"]] = gr.update(choices=[(f"layer {each}", each) for each in layers], value=layer)
    index = newest if chosen_index is None else min(chosen_index, newest)
    step, probe = history.probes[index]
    if changed(shown, "probe", (newest, index)):
        updates[p["probe note"]] = f"Checkpoint {index}: step {step:,}"
        updates[p["probe"]] = training.probe_map(probe)
        updates[p["router curves"]] = plots.router_curves(_curves(tuple(history.router_records)), step)
    if changed(shown, "film", (newest, index, layer)):
        updates |= layer_figures(p, history.router_records, step, layers.index(layer))
    return updates


def layer_figures(p: dict, records: list[RouterRecord], step: int, layer: int) -> dict:
    """{component: figure} of the experts of layer `layer`, an index, at a step; empty figures where none was recorded.

    Of many experts the tables show those that are the busiest at the newest checkpoint.
    """
    record = next((record for record in records if record.step == step), None)
    if record is None:
        return {p[name]: None for name in ("film experts", "film pairs", "film vocabulary")}
    order = list(range(record.num_experts))
    if record.num_experts > routing.MAX_BARS:
        order.sort(key=lambda expert: -records[-1].counts[layer, expert])
    chosen = record.layer_routing()[layer]
    busiest = order[: routing.MAX_BARS]
    words = routing_stats.vocabulary_specialization(record.tokens, chosen)
    return {
        p["film experts"]: plots.layer_experts(record, layer, order),
        p["film pairs"]: routing.co_activation(routing_stats.co_activation(chosen), busiest),
        p["film vocabulary"]: routing.vocabulary_specialization(words, busiest),
    }
