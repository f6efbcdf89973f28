"""Which columns of a table are its text, and the text of a row.

A text column is the name of one column, or of several joined by "+", whose texts follow each other as paragraphs.
A cell is text, a list of paragraphs, or a chat: a list of {"role", "content"}, rendered by a chat template if there is one, else
written as lines "role: content".
"""

from collections import Counter
from collections.abc import Callable, Iterable

# The first of these that a table has is its text; all names are compared in lower case.
PREFERRED = [
    "text", "content", "story", "messages", "conversations", "instruction+input+output", "instruction+output",
    "prompt+completion", "prompt+response", "question+answer",
]  # fmt: skip
MAX_NESTING = 4  # lists and objects in a cell
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names -> those of chat templates


def choose_text_column(rows: Iterable[dict]) -> str | None:
    """The text column of a table with these first rows: by name, else the one with most text; None if there is no text."""
    sizes: Counter = Counter()  # characters of text by column
    for row in rows:
        texts = {name: cell_text(value) for name, value in row.items()}
        sizes.update({name: 0 if is_number(text) else len(text) for name, text in texts.items()})
    names = {str(name).strip().lower(): name for name in sizes}
    for column in PREFERRED:
        parts = [names.get(part) for part in column.split("+")]
        if None not in parts and any(sizes[part] for part in parts):
            return "+".join(parts)
    return max(sizes, key=sizes.get) if any(sizes.values()) else None


def column_parts(column: str, names: Iterable[str]) -> list[str]:
    """The columns that a text column joins, of a table with the columns `names`."""
    return [column] if column in names else column.split("+")


def row_text(row: dict, column: str, render_chat: Callable[[list[dict]], str] | None = None) -> str:
    """The text of a row, "" where it has none. If all its cells are chats, `render_chat` gets the messages of them all."""
    cells = [cell for name in column_parts(column, row) if (cell := row.get(name))]
    if render_chat and all(messages := [chat_messages(cell) for cell in cells]) and messages:
        return render_chat([message for each in messages for message in each])
    return "\n\n".join(filter(None, map(cell_text, cells)))


def chat_messages(cell) -> list[dict] | None:
    """The messages of a cell that is a chat, with role and content alone; None for any other."""
    messages = []
    for message in cell if isinstance(cell, list) else ():
        role = isinstance(message, dict) and (message.get("role") or message.get("from"))
        if not isinstance(role, str):
            return None
        messages.append({"role": ROLES.get(role, role), "content": _content(message)})
    return messages or None


def cell_text(value, nesting: int = MAX_NESTING) -> str:
    """The text of a cell, "" for one that holds no text."""
    if isinstance(value, str) or not nesting:
        return value if isinstance(value, str) else ""
    if isinstance(value, list):
        return "\n\n".join(filter(None, (cell_text(item, nesting - 1) for item in value)))
    if isinstance(value, dict):
        text = _content(value, nesting)
        role = value.get("role") or value.get("from")
        return f"{role}: {text}" if text and isinstance(role, str) else text
    return ""


def _content(value: dict, nesting: int = MAX_NESTING) -> str:
    """The text of an object, such as a message without its role."""
    return "".join(cell_text(value.get(key), nesting - 1) for key in ("content", "value", "text"))


def is_number(cell: str) -> bool:
    """Whether a cell is a number or empty."""
    try:
        float(cell or 0)
        return True
    except ValueError:
        return False
