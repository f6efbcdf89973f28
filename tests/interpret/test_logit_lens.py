"""The logit lens against models that are cut off; test_families.py does the same on all families."""

import copy

import torch

from deepseek.interpret.logit_lens import lens_logits, recorded_layers


def test_a_row_is_the_model_cut_off_behind_that_layer(any_model):
    ids = [5, 9, 17, 20]
    with torch.no_grad(), recorded_layers(any_model) as outputs:
        own = any_model(torch.tensor([ids]), use_cache=False).logits[0]
    rows = list(lens_logits(any_model, ids, outputs))
    assert len(rows) == len(any_model.model.layers) + 1 and torch.equal(rows[-1], own)
    for num_layers, logits in enumerate(rows):
        cut = copy.deepcopy(any_model)
        cut.model.layers = cut.model.layers[:num_layers]
        with torch.no_grad():
            assert torch.equal(cut(torch.tensor([ids]), use_cache=False).logits[0], logits)
