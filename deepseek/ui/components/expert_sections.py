"""What experts do, as the sections of the page and of the report: vocabulary, kinds of text, partners, repetition, geometry.

A further section is one more entry of SECTIONS.
"""

from collections.abc import Callable

import numpy as np
import torch

from deepseek.interpret import geometry, specialization
from deepseek.interpret.chance import Comparison, permuted, stack
from deepseek.interpret.corpus import Corpus
from deepseek.ui.components.sections import Detail, Measured, Section, Step, format_number
from deepseek.ui.plots import specialization as plots
from deepseek.ui.plots import style
from deepseek.ui.plots.routing import MAX_ROWS
from deepseek.ui.plots.routing import vocabulary_specialization as token_map

CHOICES = ("first choice", "any choice")  # of `specialization.repetition`


def _by_layer(corpus: Corpus, step: Step, compare: Callable[[int], Comparison]) -> list[Comparison]:
    found = []
    for index in range(len(corpus.routing)):
        step(index / len(corpus.routing))
        found.append(compare(index))
    return found


def _spread(values_E1: torch.Tensor) -> torch.Tensor:
    """The standard deviation over the experts of what `specialization` returns with its mean first."""
    values = values_E1[1:][~values_E1[1:].isnan()]
    return values.std() if len(values) > 1 else torch.tensor(torch.nan)


def _averages(series: dict[str, list[Comparison]], layers: list[int]) -> Measured:
    means = {name: stack([each[0] for each in found]) for name, found in series.items()}
    spreads = {name: torch.stack([_spread(each.observed) for each in found]) for name, found in series.items()}
    return Measured(means, layers, spreads, "the experts of a layer")


def _labels(corpus: Corpus) -> dict[str, torch.Tensor]:
    return {"token read": corpus.ids_T, "token predicted": corpus.predicted_T}


def _vocabulary(corpus: Corpus, step: Step) -> Measured:
    series = {}
    for part, (name, ids_T) in enumerate(_labels(corpus).items()):
        series[name] = _by_layer(
            corpus,
            lambda fraction, part=part: step((part + fraction) / 2),
            lambda index, ids_T=ids_T: specialization.vocabulary_specialization(corpus.routing[index], ids_T),
        )
    return _averages(series, corpus.layers)


def _vocabulary_detail(corpus: Corpus, index: int) -> Detail:
    layer, figures, columns = corpus.routing[index], [], []
    for ids_T in _labels(corpus).values():
        experts = specialization.vocabulary_specialization(layer, ids_T)[1:]
        order = np.argsort(-experts.observed.nan_to_num(-1).numpy(), kind="stable")
        tokens = specialization.expert_tokens(layer, ids_T)
        texts = [[(corpus.texts[each.token], each.times, each.total) for each in row] for row in tokens]
        drawn = [int(expert) for expert in order if texts[expert]][:MAX_ROWS]
        figures.append(token_map(texts, drawn) if drawn else None)
        columns.append((experts, texts, order))
    (experts, texts, order), (predicted, predicted_texts, _) = columns
    loads = specialization.processed_shares(layer)
    rows = [
        [
            int(expert),
            f"{loads[expert]:.1%}",
            *(format_number(float(value[expert]), ".1%") for value in (experts.observed, experts.chance)),
            *(format_number(float(value[expert]), ".1%") for value in (predicted.observed, predicted.chance)),
            _token_list(texts[expert]),
            _token_list(predicted_texts[expert]),
        ]
        for expert in order
    ]
    headers = ["expert", "of all tokens", "of tokens read", "chance", "of tokens predicted", "chance"]
    return Detail(figures, [*headers, "tokens read", "tokens predicted"], rows)


def _token_list(tokens: list[tuple[str, int, int]]) -> str:
    return "  ".join(f"{style.show_invisible(text)} {times}/{total}" for text, times, total in tokens)


def _domains(corpus: Corpus, step: Step) -> Measured:
    num_kinds = len(corpus.kinds)
    found = stack(
        _by_layer(
            corpus,
            step,
            lambda index: specialization.domain_specialization(corpus.routing[index], corpus.kind_T, num_kinds),
        )
    )
    return Measured({kind: found[:, number] for number, kind in enumerate(corpus.kinds)}, corpus.layers)


def _domains_detail(corpus: Corpus, index: int) -> Detail:
    layer = corpus.routing[index]
    shares = specialization.domain_shares(layer, corpus.kind_T, len(corpus.kinds))
    far = shares.deviations.abs().nan_to_num(0, posinf=1e9).max(0).values
    order = far.argsort(descending=True, stable=True).tolist()
    parts = [values[:, order] for values in (shares.observed, shares.chance, shares.spread, shares.side)]
    hover = "%{y}, expert %{x}"
    names = [style.label(kind) for kind in corpus.kinds]
    figure = plots.share_map(*parts, names, [str(expert) for expert in order], hover)
    rows = [
        [
            expert,
            *(f"{float(share):.1%}" for share in shares.observed[:, expert]),
            f"{float(shares.chance[:, expert].mean()):.1%}",
            ", ".join(kind for kind, side in zip(corpus.kinds, shares.side[:, expert]) if side > 0) or "none",
        ]
        for expert in order
    ]
    headers = ["expert", *(f"of {kind}" for kind in corpus.kinds), "of each by chance", "above chance for"]
    return Detail([figure], headers, rows)


def _partners(corpus: Corpus, step: Step) -> Measured:
    routing = corpus.routing
    within = _by_layer(corpus, lambda f: step(f / 2), lambda i: specialization.favourite_partner(routing[i]))
    across = _by_layer(
        corpus,
        lambda f: step(0.5 + f / 2),
        lambda i: (
            specialization.favourite_partner(routing[i], routing[i + 1])
            if i + 1 < len(routing)
            else _nothing(routing[i])
        ),
    )
    return _averages({"in the same layer": within, "in the next layer": across}, corpus.layers)


def _nothing(layer) -> Comparison:
    return Comparison(*(torch.full((layer.num_experts + 1,), torch.nan) for _ in range(3)))


def _partners_detail(corpus: Corpus, index: int) -> Detail:
    layer, figures, rows = corpus.routing[index], [], []
    others = corpus.routing[index + 1 : index + 2]
    compared = [(layer, "same layer", specialization.co_activation)] if layer.indices.shape[1] > 1 else []
    compared += [
        (other, f"layer {other.layer}", lambda a, b=other: specialization.cross_activation(a, b)) for other in others
    ]
    for other, place, compare in compared:
        shares = compare(layer)
        pairs = specialization.strongest_pairs(shares)
        own, their = (_shown(layer, [p.expert for p in pairs]), _shown(other, [p.partner for p in pairs]))
        if other is layer:
            own = their = _shown(layer, [expert for pair in pairs for expert in pair[:2]])
        parts = [values[own][:, their] for values in (shares.observed, shares.chance, shares.spread, shares.side)]
        hover = f"of expert %{{y}}'s tokens also expert %{{x}} of {'it' if other is layer else place}"
        figures.append(plots.share_map(*parts, list(map(str, own)), list(map(str, their)), hover))
        rows += [
            [pair.expert, place, pair.partner, f"{pair.share:.1%}", f"{pair.chance:.1%}", f"{pair.deviations:.1f}"]
            for pair in pairs
        ]
    missing = [None] * (2 - len(figures))
    headers = ["expert", "partner in", "partner", "share", "chance", "standard deviations above"]
    return Detail(missing + figures if layer.indices.shape[1] == 1 else figures + missing, headers, rows)


def _shown(layer, first: list[int]) -> list[int]:
    """The experts that a map draws, ascending: all, or of many those named `first` and those with the lowest numbers."""
    if layer.num_experts <= MAX_ROWS:
        return list(range(layer.num_experts))
    return sorted(list(dict.fromkeys([*first, *range(layer.num_experts)]))[:MAX_ROWS])


def _repetition(corpus: Corpus, step: Step) -> Measured:
    found = stack(_by_layer(corpus, step, lambda i: specialization.repetition_by_kind(corpus.routing[i], corpus)))
    panels = {choice: {kind: f"{kind}, {choice}" for kind in corpus.kinds} for choice in CHOICES}
    series = {
        panels[name][kind]: found[:, k, i] for i, name in enumerate(CHOICES) for k, kind in enumerate(corpus.kinds)
    }
    return Measured(series, corpus.layers, panels=panels)


def _repetition_detail(corpus: Corpus, index: int) -> Detail:
    layer = corpus.routing[index]
    found = specialization.repetition_by_kind(layer, corpus)
    even = specialization.uniform_repetition(layer.num_experts, layer.indices.shape[1])
    rows = [
        [
            kind,
            name,
            *(f"{float(values[k, i]):.1%}" for values in (found.observed, found.chance, found.spread)),
            f"{even[i]:.1%}",
        ]
        for k, kind in enumerate(corpus.kinds)
        for i, name in enumerate(CHOICES)
    ]
    headers = ["kind of text", "what", "share", "chance", "its standard deviation", "random routing with even loads"]
    return Detail([], headers, rows)


def _sampled(corpus: Corpus, index: int):
    return geometry.cosine_similarity(corpus.dots[index]), corpus.routing[index].indices[corpus.sample_S]


def _geometry(corpus: Corpus, step: Step) -> Measured:
    names = {"rank correlation": geometry.rank_correlation, "nearest neighbour agrees": geometry.neighbour_agreement}
    found = _by_layer(corpus, step, lambda i: stack([compare(*_sampled(corpus, i)) for compare in names.values()]))
    return Measured({name: stack(found)[:, number] for number, name in enumerate(names)}, corpus.layers)


def _geometry_detail(corpus: Corpus, index: int) -> Detail:
    similarity, indices_SK = _sampled(corpus, index)
    shuffled_SK = next(permuted(indices_SK))
    bins, shuffled = (geometry.overlap_by_similarity(similarity, each) for each in (indices_SK, shuffled_SK))
    pairs = (geometry.pairs(matrix) for matrix in (similarity, geometry.routing_overlap(indices_SK)))
    names = [corpus.texts[token] for token in corpus.ids_T[corpus.sample_S].tolist()]
    flat = geometry.principal_map(corpus.dots[index])
    rows = [
        [f"{a.similarity:.3f}", f"{a.pairs:,}", f"{a.overlap:.1%}", f"{a.spread:.1%}", f"{b.overlap:.1%}"]
        for a, b in zip(bins, shuffled)
    ]
    scatter = plots.similarity_scatter(*pairs, bins, shuffled)
    headers = ["similarity, mean of a twentieth of the pairs", "pairs", "experts in common", "their spread", "shuffled"]
    return Detail([scatter, plots.state_map(*flat, indices_SK[:, 0], shuffled_SK[:, 0], names)], headers, rows)


SECTIONS = (
    Section(
        "Vocabulary",
        "Vocabulary specialization",
        "Do some experts own certain tokens? For every expert: of all occurrences of the tokens that it processes, the "
        "share that it gets (OLMoE, section 5). 100 %: whatever it processes, it gets every time. *Token read* is the "
        "token itself, *token predicted* the one that the model holds most likely to come next. Chance is above an "
        "expert's load, since a token that occurs once goes wholly to its experts.",
        "share of a token's occurrences",
        _vocabulary,
        ("Tokens read, by expert", "Tokens predicted, by expert"),
        _vocabulary_detail,
    ),
    Section(
        "Kinds of text",
        "Domain specialization",
        "Do kinds of text use different experts? For every kind: the share of its assignments that would have to go to "
        "other experts for it to be routed as all the texts together are. 0 %: no difference. Chance is above 0, since "
        "short texts differ at random. It takes tokens one by one; a text repeats its words and themes, so two texts of "
        "one kind differ somewhat more.",
        "share that would have to move",
        _domains,
        ("Share of each kind's tokens that go to each expert, the most specialised first",),
        _domains_detail,
    ),
    Section(
        "Partners",
        "Co-activation",
        "Which experts work together? For every expert: the share of its tokens that its favourite partner gets too, "
        "another expert of the same layer or one of the next. Across layers each is compared with the next one that has "
        "experts, and with no other. Within a layer chance swaps experts between tokens one by one, since tokens that swap "
        "all of theirs keep every pair.",
        "share of an expert's tokens",
        _partners,
        (
            "Within the layer: share of an expert's tokens that another gets too",
            "Into the next layer with experts (of the last layer there is none)",
        ),
        _partners_detail,
    ),
    Section(
        "Repetition",
        "Consecutive tokens",
        "Does a token go where the one before it went? *First choice*: both have the same expert of largest weight. *Any "
        "choice*: at least one expert is chosen for both (Mixtral, section 5). Chance swaps experts within a text; with "
        "even loads it would be 1 / experts for the first choice.",
        "share of consecutive tokens",
        _repetition,
        (),
        _repetition_detail,
    ),
    Section(
        "Geometry",
        "Hidden states and experts",
        "Do similar hidden states go to the same experts? *Rank correlation* (Spearman's) of the cosine similarity of two "
        "tokens' hidden states, as the router reads them, and the share of experts that they have in common: 1 means "
        "that the more similar of two pairs always shares more. *Nearest neighbour agrees*: the share of tokens whose "
        "most similar other token has the same first expert. Chance shuffles the experts over the tokens: it correlates "
        "around 0.",
        "correlation, or share of tokens",
        _geometry,
        (
            "Pairs of tokens: similarity and experts in common",
            "Map of the hidden states before the router (principal components), coloured by first expert",
        ),
        _geometry_detail,
        ".3f",
    ),
)
