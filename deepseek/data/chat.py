"""Conversations as text: messages, rendered by the chat template that a tokenizer comes with.

Messages are a list of {"role", "content"}. In the rendered text special tokens are written by their names, such as <|im_end|>;
tokenized, they are those tokens, also where a message's content spells one: what is shown is what the model gets.
"""

from collections.abc import Callable
from functools import partial

from deepseek.data.template_process import render_template

ROLES = ("system", "developer", "user", "assistant", "tool")
# Tokens that end an assistant's turn in templates of the field, one token each where a tokenizer has them: ChatML's, Llama 3's,
# Llama 4's and Gemma's. Not <|end|>: it ends a turn of Phi, which names it in its generation_config, but a channel of gpt-oss.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>")


def chat_template(tokenizer) -> str | None:
    """The chat template of a tokenizer, a jinja2 program; of several the one named "default". None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


def is_chat(prompt) -> bool:
    """Whether a prompt is a list of messages, and no text or token ids."""
    return isinstance(prompt, (list, tuple)) and any(isinstance(message, dict) for message in prompt)


def check_messages(messages) -> list[dict]:
    """`messages` as they are. Raises ValueError naming what is wrong with them."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f'messages are {messages!r:.60}; they must be a list of {{"role", "content"}}, one or more.')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError(f"message {number} is {message!r:.60}; it must be an object with role and content alone.")
        if message["role"] not in ROLES:
            raise ValueError(
                f"role of message {number} is {message['role']!r:.40}; it must be one of {', '.join(ROLES)}."
            )
        if not isinstance(message["content"], str):
            raise ValueError(f"content of message {number} is {message['content']!r:.60}; it must be text.")
    return list(messages)


def render(tokenizer, messages, add_generation_prompt: bool = True) -> str:
    """The text of a conversation by the tokenizer's chat template, up to where the assistant's answer begins.

    Without `add_generation_prompt` it ends with the last message. Raises ValueError for wrong messages, a tokenizer without
    a chat template, and a template that refuses them or passes the limits of `template_process`.
    """
    messages = check_messages(messages)
    if (template := chat_template(tokenizer)) is None:
        raise ValueError(f"messages are {messages!r:.60}; they need a chat template, and the tokenizer has none.")
    variables = {**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt}
    return render_template(template, messages, variables)


def rendered(tokenizer, prompt):
    """A prompt as text: messages rendered, a text as it is. Raises ValueError as `render` does."""
    return render(tokenizer, prompt) if is_chat(prompt) else prompt


def conversation(tokenizer, prompt: str, system: str = "") -> str | list[dict]:
    """The messages of a user's first prompt, after a system prompt unless that is empty; the prompt itself, as text to continue,
    where the tokenizer has no chat template or the prompt is empty.
    """
    if chat_template(tokenizer) is None or not prompt.strip():
        return prompt
    first = [{"role": "system", "content": system}] if system.strip() else []
    return [*first, {"role": "user", "content": prompt}]


def document_renderer(tokenizer) -> Callable[[list[dict]], str] | None:
    """What renders the chats of a data set whole, None for a tokenizer without a chat template: `ReadOptions.render_chat`."""
    return partial(render, tokenizer, add_generation_prompt=False) if chat_template(tokenizer) else None


def end_of_turn_ids(tokenizer) -> set[int]:
    """The tokens that end an assistant's turn, besides those in the model's generation_config; none without a chat template.

    They are the tokenizer's end token, and those of END_OF_TURN that the template writes: many a fine-tuned checkpoint took
    over the generation_config of its base model, which does not know them.
    """
    if (template := chat_template(tokenizer)) is None:
        return set()
    names = [name for name in END_OF_TURN if name in template]
    return {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(names)} - {None, tokenizer.unk_token_id}
