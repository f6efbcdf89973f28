"""How a run's routers changed, as JSON: what /train_routing answers."""

from dataclasses import asdict

from deepseek.interpret import routing_stats
from deepseek.training.metrics import History
from deepseek.training.router_alarms import alarm_sentences, router_alarms
from deepseek.training.router_history import RouterRecord, router_curves


def routing_json(history: History, step: int) -> dict:
    """The curves over all checkpoints, the alarms, and the routing at checkpoint `step`, -1 for the newest.

    Raises ValueError for a step without a record.
    """
    records = {record.step: record for record in history.router_records}
    if isinstance(step, bool) or step not in [-1, *records]:
        allowed = ", ".join(map(str, [-1, *records]))
        raise ValueError(f"step is {step!r:.60}; it must be one of {allowed}.")
    record = records[max(records) if step == -1 else step] if records else None
    return {
        **router_curves(history.router_records),
        "alarms": [{**asdict(alarm), "sentence": alarm_sentences([alarm])[0]} for alarm in router_alarms(history)],
        "checkpoint": record and record_json(record),
    }


def record_json(record: RouterRecord) -> dict:
    """The routing of a run's checkpoint as JSON."""
    layers = record.layer_routing()
    ratios = [routing_stats.co_activation(layer).tolist() for layer in layers]
    return {
        "step": record.step,
        "tokens": record.tokens,
        "experts": record.num_experts,
        "indices": record.indices.tolist(),
        "load": record.load.tolist(),
        "bias": None if record.bias is None else record.bias.tolist(),
        "vocabulary_specialization": [
            routing_stats.vocabulary_specialization(record.tokens, layer) for layer in layers
        ],
        "co_activation": [[[None if r != r else r for r in row] for row in rows] for rows in ratios],
    }
