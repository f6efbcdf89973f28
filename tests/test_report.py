"""The report from the command line: the file it writes, and that every wrong argument is one sentence."""

import json
import re
from pathlib import Path

import pytest

from deepseek import report


@pytest.fixture
def report_main(monkeypatch, tmp_path):
    """Runs `python -m deepseek.report` with the given arguments in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["report", *arguments])
        report.main()

    return run


def test_every_file_is_a_kind_of_text(report_main, checkpoint, stories, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "numbers.txt").write_text("12 34 56 78 " * 20)
    (folder / "foxes.jsonl").write_text("\n".join(json.dumps({"text": "A fox ran over the hill."}) for _ in range(30)))
    report_main(
        checkpoint, "--texts", "texts", stories, "--max-tokens", "120", "--out", "out.html", "--beside", checkpoint
    )
    assert "out.html: foxes, numbers, stories" in capsys.readouterr().out
    page = Path("out.html").read_text("utf-8")
    assert "foxes 119 tokens, numbers 119 tokens, stories 119 tokens; only the beginning of foxes" in page
    assert "<h3>B less A</h3>" in page and re.search('id="vocabulary"', page)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("nothing --texts a.txt", "checkpoint 'nothing' is neither a folder nor a Hub id"),
        ("CHECKPOINT --texts nothing.txt", "data 'nothing.txt' is not there"),
        ("CHECKPOINT --texts empty.txt", "data 'empty.txt' holds no text."),
        ("CHECKPOINT --texts a.txt twice/a.txt", "two files of texts are named 'a'"),
        ("CHECKPOINT --texts a.txt --max-tokens 1", "max_tokens is 1; it must be at least 2."),
        ("CHECKPOINT --texts a.txt --out nowhere/report.html", "No such file or directory"),
    ],
)
def test_a_wrong_argument_is_one_sentence(report_main, checkpoint, tmp_path, arguments, message):
    (tmp_path / "twice").mkdir()
    for name in ("a.txt", "twice/a.txt", "empty.txt"):
        (tmp_path / name).write_text("" if name == "empty.txt" else "a fox ran over the hill")
    with pytest.raises(SystemExit) as caught:
        report_main(*arguments.replace("CHECKPOINT", checkpoint).split())
    assert message in str(caught.value) and str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
