"""Small text and weights that many tests share."""

import torch

STORIES = [f"Once upon a time fox number {i} ran over the hill to see {i * i} déjà vu 漢字 🦊 dogs." for i in range(40)]
SHAPE = dict(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip


def randomized(model):
    """Weights large enough that every part matters, and a router bias that changes which experts win."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        tensor.copy_(torch.empty(tensor.shape).normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator))
    return model.eval()
