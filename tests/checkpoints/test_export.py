"""What is saved to share: bf16, and the mean of several checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from deepseek.checkpoints.export import export
from deepseek.checkpoints.loading import load

WEIGHTS = "model.safetensors"


def test_export_writes_bf16_and_the_tokenizer(checkpoint, tmp_path):
    export(checkpoint, tmp_path)
    before, after = load_file(Path(checkpoint) / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if not name.endswith("e_score_correction_bias"):
            assert tensor.dtype == torch.bfloat16, name
            assert torch.equal(tensor, before[name].bfloat16()), name
    assert load(tmp_path)[1].get_vocab() == load(checkpoint)[1].get_vocab()


def test_several_become_the_mean_of_their_weights_rounded_once(model, checkpoint, tmp_path):
    other = load(checkpoint, torch.float32)[0]
    for tensor in [*other.parameters(), *other.buffers()]:  # tied ones come once
        tensor.data += 0.5 * torch.randn_like(tensor)
    other.save_pretrained(tmp_path / "other")
    export([tmp_path / "other", tmp_path / "other", checkpoint], tmp_path / "mean")
    one, two, mean = (load_file(Path(f) / WEIGHTS) for f in (checkpoint, tmp_path / "other", tmp_path / "mean"))
    assert one.keys() == mean.keys()
    for name, tensor in mean.items():
        expected = (one[name] + 2 * two[name]) / 3
        torch.testing.assert_close(tensor.float(), expected, rtol=2**-8, atol=1e-6)
    assert load(tmp_path / "mean")[1] is not None
