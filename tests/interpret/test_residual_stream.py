"""What layers add to the residual stream, against hooks on the parts of one model; tests/interpret/test_walk.py does the rest."""

import copy
import threading

import torch

from deepseek.interpret.residual_stream import measure_residual_stream

IDS = [5, 7, 100, 31, 5, 2]


def test_additions_are_the_outputs_of_attention_and_feed_forward(any_model):
    hooked, outputs = copy.deepcopy(any_model), {}
    for index, layer in enumerate(hooked.model.layers):
        for name in ("self_attn", "mlp"):
            part = getattr(layer, name, None) or layer.block_sparse_moe
            keep = lambda _, __, output, key=(index, name): outputs.update({key: output})  # noqa: E731
            part.register_forward_hook(keep)
    with torch.no_grad():
        hooked(torch.tensor([IDS]), use_cache=False)
    outputs = {key: output[0] if isinstance(output, tuple) else output for key, output in outputs.items()}
    measured = measure_residual_stream(any_model, IDS)
    assert len(measured) == len(any_model.model.layers)
    for index, layer in enumerate(measured):
        for addition, name in ((layer.attention, "self_attn"), (layer.feed_forward, "mlp")):
            expected = outputs[index, name].reshape(len(IDS), -1).norm(dim=-1)
            torch.testing.assert_close(addition.norm, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.feed_forward.residual_norm, layer.output_norm, atol=1e-5, rtol=1e-4)


def test_other_passes_of_the_model_are_not_recorded(model):
    """Eight texts in eight threads, on a model that was never measured."""
    shared, texts = copy.deepcopy(model), [IDS[: 2 + index % 4] + [index] for index in range(8)]
    measured, barrier = [None] * 8, threading.Barrier(8)

    def work(index):
        barrier.wait()
        measured[index] = measure_residual_stream(shared, texts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, layers in zip(texts, measured):
        for layer, alone in zip(layers, measure_residual_stream(model, text), strict=True):
            torch.testing.assert_close(layer.shared_norm, alone.shared_norm)
            torch.testing.assert_close(layer.output_norm, alone.output_norm)
