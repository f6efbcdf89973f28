"""The text column of a table is chosen by name, then by the amount of text; a cell may be a chat."""

import pytest

from deepseek.data.columns import cell_text, choose_text_column, row_text

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A fox."}]
TABLES = {
    "text": [{"title": "a long title", "text": "b"}],
    "Content": [{"id": "x" * 99, "Content": "b"}],
    "story": [{"meta": "a long remark"}, {"story": "b"}],
    "messages": [{"source": "web", "messages": CHAT}],
    "conversations": [{"id": "identity_0", "conversations": [{"from": "human", "value": "Who?"}]}],
    "instruction+input+output": [{"output": "a", "instruction": "b", "input": ""}],
    "instruction+output": [{"instruction": "b", "output": "a"}],
    "question+answer": [{"id": "1", "question": "b", "answer": "c"}],
    "article": [{"id": "a1", "category": "news", "article": "A long text.", "text": 5}],
    None: [{"a": 1, "b": "2", "c": None, "d": ""}],
}


@pytest.mark.parametrize("column", TABLES)
def test_the_text_column_is_chosen_by_name_else_by_amount_of_text(column):
    assert choose_text_column(TABLES[column]) == column


def test_the_text_of_a_row():
    row = {"title": "A", "body": "B", "a+b": "C", "messages": CHAT, "paragraphs": ["one", "two"], "n": 5, "empty": None}
    assert row_text(row, "title+body") == "A\n\nB" and row_text(row, "a+b") == "C"
    assert row_text(row, "messages") == "user: Who?\n\nassistant: A fox."
    assert row_text(row, "paragraphs") == "one\n\ntwo"
    assert row_text(row, "n") == row_text(row, "empty") == row_text(row, "missing") == ""
    assert cell_text([{"from": "human", "value": [{"type": "text", "text": "in parts"}]}]) == "human: in parts"
    deep = []
    for _ in range(900):
        deep = [deep]
    assert cell_text(deep) == ""


def test_chats_are_rendered_whole_if_there_is_a_template():
    shared = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": [{"type": "text", "text": "A fox."}]}]
    row = {
        "messages": CHAT,
        "prompt": CHAT[:1],
        "completion": CHAT[1:],
        "shared": shared,
        "text": "plain",
        "list": ["a"],
    }
    row["more"] = [{**CHAT[0], "weight": 0}, CHAT[1]]
    for column in ("messages", "prompt+completion", "shared", "more"):
        assert row_text(row, column, str) == str(CHAT)
    for column in ("text", "list", "text+messages", "missing"):
        assert row_text(row, column, str) == row_text(row, column)
