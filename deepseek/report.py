"""A report of what a checkpoint's experts do: `python -m deepseek.report CHECKPOINT --texts FILES --out report.html`."""

import argparse
import sys
from pathlib import Path

from deepseek.checkpoints.loading import CheckpointError, load
from deepseek.checkpoints.progress import reported
from deepseek.data.readers import documents
from deepseek.data.text_lines import ENCODINGS, DataError, ReadOptions
from deepseek.interpret.corpus import trace_corpus
from deepseek.ui.components.report_page import Subject, report_html

MAX_TOKENS = 4096
CHARACTERS_PER_TOKEN = 16  # more than any tokenizer's, on average


@reported(lambda what, fraction: show(fraction, what))
def main():
    parser = argparse.ArgumentParser(description="What the experts of a checkpoint do, as one HTML file.")
    parser.add_argument("checkpoint", help="folder or Hub id")
    parser.add_argument(
        "--texts", nargs="+", default=["assets/texts"], help="files, one for each kind of text, or folders of them"
    )
    parser.add_argument("--out", default="report.html", help="the file to write (default: report.html)")
    parser.add_argument("--beside", metavar="CHECKPOINT", help="a second checkpoint: both, and their differences")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, help=f"read of each kind of text (default: {MAX_TOKENS})"
    )
    parser.add_argument("--text-column", default="", help="text column of tables (default: chosen by name)")
    parser.add_argument("--encoding", choices=ENCODINGS, default="auto", help="encoding of text files")
    args = parser.parse_args()
    try:
        if args.max_tokens < 2:
            raise ValueError(f"max_tokens is {args.max_tokens}; it must be at least 2.")
        texts = read_kinds(args.texts, args.max_tokens, ReadOptions(args.text_column, args.encoding))
        subjects = []
        for path in filter(None, (args.checkpoint, args.beside)):
            model, tokenizer = load(path)
            if tokenizer is None:
                raise CheckpointError(f"checkpoint {path!r} has no tokenizer.")
            corpus = trace_corpus(
                model, tokenizer, texts, lambda done: show(done, "reading the texts"), args.max_tokens
            )
            subjects.append(Subject(model, tokenizer, texts, corpus))
        Path(args.out).write_text(report_html(subjects, show), "utf-8")
        print(f"\r{args.out}: {', '.join(texts)}{'':40}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def show(fraction: float, what: str) -> None:
    """Shows on a terminal how far the work is."""
    if sys.stderr.isatty():
        print(f"\r{fraction:4.0%} {what:40}", end="", file=sys.stderr, flush=True)


def read_kinds(sources: list[str], max_tokens: int, options: ReadOptions) -> dict[str, str]:
    """{name: text} of files, one kind of text each, named after the file; of a folder every file is one.

    Reads enough for `max_tokens` of each. Raises DataError for a file without text and for two of one name.
    """
    files = [
        file
        for source in map(Path, sources)
        for file in (sorted(each for each in source.iterdir() if each.is_file()) if source.is_dir() else [source])
    ]
    texts = {}
    for file in files:
        name, text = file.name.split(".")[0], ""
        for document in documents(str(file), options):
            text += ("\n\n" if text else "") + document
            if len(text) > max_tokens * CHARACTERS_PER_TOKEN:
                break
        if name in texts:
            raise DataError(f"two files of texts are named {name!r}; each kind must have a name of its own.")
        if not text.strip():
            raise DataError(f"data {str(file)!r} holds no text.")
        texts[name] = text[: max_tokens * CHARACTERS_PER_TOKEN]
    return texts


if __name__ == "__main__":
    main()
