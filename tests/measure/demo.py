"""What the card of the demo says in figures: `python tests/measure/demo.py [CHECKPOINT] --data FOLDER`.

FOLDER holds tinystories_valid, kidsbooks_valid, gutenberg_valid and wiki_leads_valid (.txt.xz); Python's own tests, which
the built-in text leaves out, are the held-out Python. A line of JSON for each text: its held-out loss, MaxVio and how many
experts are dead. Then how well the kind of a text is told from routing alone: see `separability`.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import test
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from deepseek import load
from deepseek.data.readers import documents
from deepseek.data.tokenizer import encode_document
from deepseek.interpret.trace import recorded_routing
from deepseek.model.load_balancing import tokens_per_expert
from deepseek.training.metrics import DEAD_SHARE
from deepseek.training.validation import evaluate

TEXTS = ["tinystories_valid", "kidsbooks_valid", "gutenberg_valid", "wiki_leads_valid"]
KINDS = ["tinystories_valid", "wiki_leads_valid", "python_valid"]
PYTHON_FILES, PYTHON_CHARACTERS = 60, 8_000  # of Python's tests: this many files, the beginning of each
MOST = 200  # documents of one kind whose routing is looked at


def python_tests() -> list[str]:
    """Beginnings of Python's own test modules, spread over all of them."""
    files = sorted(Path(test.__path__[0]).glob("test_*.py"))
    return [file.read_text("utf-8", "replace")[:PYTHON_CHARACTERS] for file in files[:: len(files) // PYTHON_FILES]]


@torch.no_grad()
def features(model, tokenizer, texts, window: int) -> list[torch.Tensor]:
    """For every text its windows' routing (windows, layers * experts): the share of its choices that each expert got."""
    found = []
    for text in itertools.islice(texts, MOST):
        ids = torch.tensor(encode_document(tokenizer, text)[1 : model.config.max_position_embeddings])
        if len(ids) < window:
            continue
        with recorded_routing(model) as record:
            model(ids[None], use_cache=False)
        rows = []
        for start in range(0, len(ids) - window + 1, window):
            parts = (indices[start : start + window] for _, indices, _ in record.values())
            rows.append(torch.cat([tokens_per_expert(part, model.config.n_routed_experts) for part in parts]) / window)
        found.append(torch.stack(rows))
    return found


def separability(kinds: list[list[torch.Tensor]]) -> float:
    """Accuracy of a linear classifier that is told the expert counts of a window and says which kind its text is.

    Multinomial logistic regression, trained on every second document and tested on the others, kinds weighed alike: a
    guess is right one time in len(kinds).
    """
    halves = []
    for half in (0, 1):
        parts = [torch.cat(texts[half::2]) for texts in kinds]
        halves.append((torch.cat(parts), torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])))
    (x, y), (x_test, y_test) = halves
    mean, spread = x.mean(0), x.std(0) + 1e-6
    counts = torch.bincount(y).float()
    linear = torch.nn.Linear(x.shape[1], len(kinds))
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(linear((x - mean) / spread), y, 1 / counts) + 1e-2 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    right = linear((x_test - mean) / spread).argmax(-1) == y_test
    return sum(float(right[y_test == kind].float().mean()) for kind in range(len(kinds))) / len(kinds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the held-out texts")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = load(args.checkpoint, torch.float32)
    texts = {name: list(documents(str(args.data / f"{name}.txt.xz"))) for name in TEXTS}
    texts["python_valid"] = python_tests()
    for name, documents_of in texts.items():
        result = evaluate(model, tokenizer, documents_of, model.config.max_position_embeddings)
        even = 1 / model.config.n_routed_experts
        dead = sum(share < DEAD_SHARE * even for shares in result.load for share in shares)
        values = {key: value for key, value in asdict(result).items() if key != "load"}
        print(json.dumps({"text": name, **values, "dead_experts": dead}), flush=True)
    for window in (16, 64):
        kinds = [features(model, tokenizer, texts[name], window) for name in KINDS]
        line = {"window": window, "kinds": KINDS, "accuracy": round(separability(kinds), 4)}
        print(json.dumps({**line, "chance": round(1 / len(KINDS), 4)}), flush=True)


if __name__ == "__main__":
    main()
