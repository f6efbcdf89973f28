"""The chat of a checkpoint that has a chat template: its switch, the system prompt, and the next message of a conversation."""

import gradio as gr

from deepseek.data.chat import chat_template, conversation
from deepseek.ui.errors import user_error
from deepseek.ui.generation import QUICK_QUEUE
from deepseek.ui.server import model_registry


def build_switch(checkpoint: gr.State, name: str = "chat") -> tuple[gr.Checkbox, gr.Textbox]:
    """Draws switch and system prompt in a row with the id `name`, shown while the user's `checkpoint` has a chat template."""
    with gr.Row(**show_switch(checkpoint.value), elem_id=name, elem_classes="chat") as area:
        label = "chat: the prompt is your message, and the model answers it"
        switch = gr.Checkbox(True, label=label, container=False, min_width=240, elem_id=f"{name}-switch")
        with gr.Column(min_width=240), gr.Accordion("system prompt", open=False):
            system = gr.Textbox(label="system prompt", show_label=False, container=False, lines=1, max_lines=6)
    checkpoint.change(lambda path: gr.update(**show_switch(path)), checkpoint, area, **QUICK_QUEUE)
    return switch, system


def build_reply(generation) -> tuple[gr.Row, gr.Textbox, gr.Button]:
    """Draws the box of the next message, hidden unless `generation` is a chat."""
    with gr.Row(visible=bool(generation.messages), elem_id="reply") as row:
        placeholder = "your next message"
        box = gr.Textbox(label="next message", show_label=False, container=False, placeholder=placeholder, lines=1,
                         max_lines=8, scale=6, min_width=200)  # fmt: skip
        send = gr.Button("Send", min_width=80)
    return row, box, send


def show_switch(checkpoint: str) -> dict[str, bool]:
    """The switch's `visible` for a checkpoint."""
    _, tokenizer = model_registry.get_model(checkpoint)
    return dict(visible=chat_template(tokenizer) is not None)


def request_of(tokenizer, prompt: str | None, chat: bool, system: str | None) -> str | list[dict]:
    """What the model is asked: the messages of a chat, or the prompt where `chat` is off or there is no chat template."""
    return conversation(tokenizer, prompt or "", system or "") if chat else prompt


def next_messages(generation, text: str | None) -> list[dict]:
    """The conversation so far, with the answer of `generation` and the user's next message. Raises gr.Error for no message."""
    if not (text or "").strip():
        raise user_error(ValueError("message is empty; it must hold at least one character that is not a space."))
    turn = {"role": "assistant", "content": generation.output}, {"role": "user", "content": text}
    return [*generation.messages, *turn]


def user_prompt(generation) -> str:
    """What a prompt box holds of a generation: its prompt, of a chat the user's first message, "" if there is none."""
    if not generation.messages:
        return generation.prompt
    return next((message["content"] for message in generation.messages if message["role"] == "user"), "")


def system_prompt(messages: list[dict]) -> str:
    """The system prompt of a conversation, "" if there is none."""
    return messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
