"""A tokenizer with a ChatML template, for the tests of chats, and a conversation with what that makes of it, written by hand."""

from copy import deepcopy

CHATML = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('No tools here!') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|channel|>"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "A fox."},
    {"role": "user", "content": "Where?"},
]
WHOLE = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
    "<|im_start|>assistant\nA fox.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
)
RENDERED = WHOLE + "<|im_start|>assistant\n"


def with_template(tokenizer, template=CHATML):
    """A copy of a tokenizer with a chat template and the special tokens of ChatML, which take the next ids."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer
