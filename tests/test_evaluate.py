"""Held-out loss from the command line: what it prints, and that every wrong argument is one sentence."""

import json
from pathlib import Path

import pytest

from deepseek import evaluate
from deepseek.data.tokenizer import encode_document


@pytest.fixture
def evaluate_main(monkeypatch):
    """Runs `python -m deepseek.evaluate` with the given arguments in this process."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
        evaluate.main()

    return run


def test_a_source_is_one_line_of_json_for_any_model(evaluate_main, any_model, tokenizer, tmp_path, stories, capsys):
    any_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    evaluate_main(str(tmp_path), stories, "--max-seq-len", "32")
    result = json.loads(capsys.readouterr().out)
    texts = Path(stories).read_text("utf-8").split("<|endoftext|>")
    assert result["source"] == "stories.txt" and result["bits_per_byte"] > 1
    assert result["tokens"] == sum(len(encode_document(tokenizer, text.strip())) - 1 for text in texts)


def test_rounded_weights_change_the_loss_a_little(evaluate_main, checkpoint, stories, capsys):
    for weights in ("model", "int8"):
        evaluate_main(checkpoint, stories, "--weights", weights, "--max-seq-len", "64")
    exact, rounded = (json.loads(line)["bits_per_byte"] for line in capsys.readouterr().out.splitlines())
    assert 0 < abs(rounded - exact) < 0.1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("nothing text", "checkpoint 'nothing' is neither a folder nor a Hub id such as name/model."),
        ("checkpoint nothing.txt", "data 'nothing.txt' is not there; it must be 'builtin', a file"),
        ("checkpoint empty.txt", "data 'empty.txt' holds no text to evaluate on."),
        ("checkpoint binary.txt", "data 'binary.txt' "),
        ("checkpoint folder", "data 'folder' "),
        ("checkpoint builtin --max-seq-len 1", "max_seq_len is 1; this model reads 2 to 256 tokens."),
        ("checkpoint builtin --max-seq-len 0", "max_seq_len is 0; this model reads 2 to 256 tokens."),
        ("checkpoint builtin --max-seq-len -3", "max_seq_len is -3; this model reads 2 to 256 tokens."),
        ("checkpoint builtin --max-seq-len 257", "max_seq_len is 257; this model reads 2 to 256 tokens."),
    ],
)
def test_a_wrong_argument_is_one_sentence(evaluate_main, checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\xff\x00\xfe\xff" * 100)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit) as exit_:
        evaluate_main(*(checkpoint if word == "checkpoint" else word for word in arguments.split()))
    assert exit_.value.code.startswith(f"error: {message}")
