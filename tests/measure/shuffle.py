"""Copies of text files with their documents in another order: `python tests/measure/shuffle.py --seed 4 --to FOLDER FILES`.

Documents end with a line `<|endoftext|>`. For a run that goes on with text of which the run before has seen the beginning.
"""

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek.data.readers import documents


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="folder of the copies, which lose the suffix .xz")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    for file in args.files:
        shuffled = [text.strip() for text in documents(str(file))]
        random.Random(args.seed).shuffle(shuffled)
        text = "".join(f"{document}\n<|endoftext|>\n" for document in shuffled)
        (args.to / file.name.removesuffix(".xz")).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
