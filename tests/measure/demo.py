"""The figures of the demo's card: `python tests/measure/demo.py [CHECKPOINT] --data FOLDER`.

FOLDER holds tinystories_valid, kidsbooks_valid, gutenberg_valid and wiki_leads_valid (.txt.xz); Python's own tests, which
the built-in data leaves out, are the held-out Python. Prints a line of JSON for each text, with its held-out loss, MaxVio
and number of dead experts, then how well routing alone tells the domain of a text: see `separability`.
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
from deepseek.interpret.moe_layers import recorded_experts
from deepseek.model.load_balancing import tokens_per_expert
from deepseek.training.metrics import dead_experts
from deepseek.training.validation import evaluate

TEXTS = ["tinystories_valid", "kidsbooks_valid", "gutenberg_valid", "wiki_leads_valid"]
DOMAINS = ["tinystories_valid", "wiki_leads_valid", "python_valid"]
PYTHON_FILES, PYTHON_CHARACTERS = 60, 8_000  # of Python's tests: this many files, the beginning of each
DOMAIN_DOCUMENTS = 200  # documents of each domain whose routing is classified


def python_tests() -> list[str]:
    """Beginnings of Python's own test modules, spread over all of them."""
    files = sorted(Path(test.__path__[0]).glob("test_*.py"))
    return [file.read_text("utf-8", "replace")[:PYTHON_CHARACTERS] for file in files[:: len(files) // PYTHON_FILES]]


@torch.no_grad()
def routing_features(model, tokenizer, texts, window: int) -> list[torch.Tensor]:
    """For each text (windows, layers * experts): the assignments per token of each expert in windows of `window` tokens."""
    features = []
    for text in itertools.islice(texts, DOMAIN_DOCUMENTS):
        ids = torch.tensor(encode_document(tokenizer, text)[1 : model.config.max_position_embeddings])
        if len(ids) < window:
            continue
        with recorded_experts(model) as record:
            model(ids[None], use_cache=False)
        layers = [ran.indices.split(window)[: len(ids) // window] for ran in record.values()]
        counts = [[tokens_per_expert(part, model.config.n_routed_experts) for part in layer] for layer in layers]
        features.append(torch.cat([torch.stack(layer) for layer in counts], 1) / window)
    return features


def separability(domains: list[list[torch.Tensor]]) -> float:
    """Accuracy of a linear classifier that predicts the domain of a window from its `routing_features`.

    Multinomial logistic regression, trained on every second document and tested on the others, with equal weight for each
    domain: a random guess is right with probability 1 / len(domains).
    """
    halves = []
    for half in (0, 1):
        parts = [torch.cat(texts[half::2]) for texts in domains]
        halves.append((torch.cat(parts), torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])))
    (x, y), (x_test, y_test) = halves
    mean, std = x.mean(0), x.std(0) + 1e-6
    counts = torch.bincount(y).float()
    linear = torch.nn.Linear(x.shape[1], len(domains))
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(linear((x - mean) / std), y, 1 / counts) + 1e-2 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    correct = linear((x_test - mean) / std).argmax(-1) == y_test
    return sum(float(correct[y_test == i].float().mean()) for i in range(len(domains))) / len(domains)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default=str(ROOT / "assets" / "demo"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the held-out texts")
    parser.add_argument("--documents", type=int, help="documents of each text (default: all)")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = load(args.checkpoint, torch.float32)
    sources = {name: documents(str(args.data / f"{name}.txt.xz")) for name in TEXTS} | {"python_valid": python_tests()}
    texts = {name: list(itertools.islice(source, args.documents)) for name, source in sources.items()}
    for name, text in texts.items():
        result = asdict(evaluate(model, tokenizer, text, model.config.max_position_embeddings))
        dead = dead_experts([result.pop("load")], window=1)
        print(json.dumps({"text": name, **result, "dead_experts": len(dead)}), flush=True)
    for window in (16, 64):
        accuracy = separability([routing_features(model, tokenizer, texts[name], window) for name in DOMAINS])
        line = {"window": window, "domains": DOMAINS, "accuracy": round(accuracy, 4)}
        print(json.dumps({**line, "random_guess": round(1 / len(DOMAINS), 4)}), flush=True)


if __name__ == "__main__":
    main()
