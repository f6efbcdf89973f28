"""Which tokens the texts of logit bias and banned tokens become."""

from deepseek.inference.sampling import SamplingParams
from deepseek.inference.token_rules import banned_sequences, named_tokens, split_bias
from deepseek.ui.plots.style import show_invisible


def describe(params: SamplingParams, tokenizer, vocab_size: int) -> str:
    """A line for each text or id that the settings bias or ban: its tokens, each with its id."""

    def tokens(ids) -> str:
        return " ".join(f"“{show_invisible(tokenizer.decode([token]))}” {token}" for token in ids)

    lines = []
    try:
        for item in params.logit_bias:
            name, amount = split_bias(item)
            ids = named_tokens("logit_bias", name, tokenizer, vocab_size)
            each = " on each of" if len(ids) > 1 else " on"
            lines.append(f"{amount:+g}{each} {tokens(ids)}")
        for name in params.banned_tokens:
            sequences = banned_sequences(name, tokenizer, vocab_size)
            lines.append("never " + ", nor ".join(tokens(ids) for ids in sequences))
    except ValueError as error:
        lines.append(f"⚠ {error}")
    return "\n".join(lines)
