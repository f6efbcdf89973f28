"""Rows are read whole and in the right column, or refused with their line."""

import json

import pandas
import pytest
from chatting import CHAT, WHOLE

from deepseek.data.chat import document_renderer
from deepseek.data.readers import documents
from deepseek.data.text_lines import DataError, ReadOptions, note

BAD_ROWS = {
    "more fields": ("text,n\nHello, world, lost\n", "line 2: it has 3 fields in place of 2, separated by ','"),
    "one column": ("text\nfine\nHello, world\n", "line 3: it has 2 fields in place of 1"),
    "fewer fields": ("id;text\n1;a\n\n2\n", "line 4: it has 1 fields in place of 2, separated by ';'"),
    "text after a quote": ('id,text\n1,"a" b\n', "line 2: ',' expected after '\"'"),
    "merged rows": ('id,text\n1,a\n2,"b\n3,c\n4,"d"\n', "line 3: ',' expected after '\"'"),
    "unclosed quote": ('id,text\n1,a\n2,"b\n3,c\n', "line 3: unexpected end of data"),
}


def write(path, content):
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_with_the_wrong_number_of_fields_is_refused_with_its_line(tmp_path, name):
    content, message = BAD_ROWS[name]
    with pytest.raises(DataError) as caught:
        list(documents(write(tmp_path / "a.csv", content)))
    assert message in str(caught.value)


def test_a_field_that_is_empty_at_the_end_of_a_row_is_no_field(tmp_path):
    assert list(documents(write(tmp_path / "a.csv", "id,text\n1,a,\n2,b\n"))) == ["a", "b"]


def test_nested_parquet_columns_are_read(tmp_path):
    chat = [{"role": "user", "content": "Who?", "at": 1}, {"role": "assistant", "content": "A fox.", "at": 2}]
    rows = pandas.DataFrame({"tags": [["x"]] * 3, "messages": [chat] * 3, "note": ["n"] * 3, "a.b": ["dotted"] * 3})
    rows.to_parquet(tmp_path / "a.parquet")
    file = str(tmp_path / "a.parquet")
    assert list(documents(file)) == ["user: Who?\n\nassistant: A fox."] * 3
    for column, text in (("note", "n"), ("tags", "x"), ("a.b", "dotted"), ("note+a.b", "n\n\ndotted")):
        assert list(documents(file, ReadOptions(column))) == [text] * 3


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_choice_of_a_column_is_told_and_can_be_changed(tmp_path, caplog, suffix):
    file, rows = str(tmp_path / f"a.{suffix}"), pandas.DataFrame({"meta": ["x"], "content": ["y"], "n": [1]})
    {
        "jsonl": lambda: rows.to_json(file, orient="records", lines=True),
        "csv": lambda: rows.to_csv(file, index=False),
        "parquet": lambda: rows.to_parquet(file),
    }[suffix]()
    note.cache_clear()
    caplog.set_level("INFO", "deepseek")
    assert list(documents(file)) == list(documents(file)) == ["y"]
    (message,) = caplog.messages
    assert message.startswith(f"data {file!r}: column 'content' is read; --text-column may name another: meta")
    assert list(documents(file, ReadOptions("meta"))) == ["x"]
    assert list(documents(file, ReadOptions("meta+content"))) == ["x\n\ny"]
    with pytest.raises(DataError, match="has no column 'story'; its columns are meta, content"):
        list(documents(file, ReadOptions("story")))


def test_a_row_without_the_text_column_is_skipped_wherever_it_is(tmp_path):
    rows = [{"meta": "a long remark"}, {"text": "one"}, {}, {"text": None}, {"text": "two"}, {"meta": "x"}]
    assert list(documents(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))) == ["one", "two"]


def test_a_long_row_of_a_json_array_is_read(tmp_path):
    """It comes in pieces of 1 MiB, and is parsed again each time that its size has doubled."""
    rows = [{"text": "fox " * 900_000}, {"text": "short"}, {"text": "\\" * 99_999}]
    text = "".join(documents(write(tmp_path / "a.json", json.dumps(rows))))
    assert text == "".join(row["text"] for row in rows)


def test_chats_are_rendered_by_a_template_and_one_that_it_refuses_is_left_out(tmp_path, caplog, chat_tokenizer):
    rows = [CHAT, [{"role": "tool", "content": "x"}], CHAT[:2], [{"role": "poet", "content": "x"}]]
    path = write(tmp_path / "chats.jsonl", "\n".join(json.dumps({"messages": row}) for row in rows))
    caplog.set_level("INFO", "deepseek")
    note.cache_clear()
    first_two = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
    assert list(documents(path, ReadOptions(render_chat=document_renderer(chat_tokenizer)))) == [WHOLE, first_two]
    told = [message.partition(": a chat is left out: ")[2] for message in caplog.messages]
    assert any("No tools here!" in each for each in told) and any(
        "role of message 1 is 'poet'" in each for each in told
    )
    assert next(documents(path)) == "system: Be brief.\n\nuser: Who?\n\nassistant: A fox.\n\nuser: Where?"
