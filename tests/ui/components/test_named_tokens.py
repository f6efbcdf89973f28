"""Which tokens the texts of logit bias and banned tokens become."""

from deepseek import SamplingParams
from deepseek.ui.components.named_tokens import describe


def test_every_text_is_shown_as_its_tokens(demo):
    _, tokenizer = demo
    fox, number = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" the", "12"))
    params = SamplingParams(logit_bias={" the": 2, "7": -1, '"12"': 0.5}, banned_tokens=["the"])
    lines = describe(params, tokenizer, len(tokenizer)).split("\n")
    assert lines[0] == f"+2 on “·the” {fox[0]}" and lines[1].startswith("-1 on “") and lines[1].endswith("” 7")
    assert all(f" {token}" in lines[2] for token in number)
    assert lines[3].startswith("never “the” ") and lines[3].endswith(f", nor “·the” {fox[0]}")


def test_what_names_no_token_is_said(demo):
    _, tokenizer = demo
    assert describe(SamplingParams(logit_bias={"9999999": 1}), tokenizer, 100).startswith(
        "⚠ logit_bias names token 9999999;"
    )
    assert describe(SamplingParams(), tokenizer, 100) == ""
