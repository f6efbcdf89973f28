"""Cross-entropy over a large vocabulary, computed in chunks of rows so that memory never holds all logits.

For 2,048 tokens and a vocabulary of 49,152, the logits, their softmax and its gradient take 400 MB each. Each chunk computes
its gradient as soon as its softmax is known (Wijmans et al., 2024, Cut Your Losses in Large-Vocabulary Language Models).

Shape letters: N tokens, D hidden width, V vocabulary, C tokens of a chunk.
"""

import torch

CHUNK_LOGITS = 2**25  # logits in memory at a time; with a quarter of it a training step takes 2 % longer
IGNORE_INDEX = -100


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N, dtype):
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        d_hidden_ND, d_weight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        weight = weight_VD.to(dtype)  # once, and not for every chunk
        rows = max(1, CHUNK_LOGITS // len(weight_VD))
        chunks = zip(hidden_ND.to(dtype).split(rows), labels_N.split(rows), d_hidden_ND.split(rows))
        for hidden_CD, labels_C, d_hidden_CD in chunks:
            logits_CV = (hidden_CD @ weight.T).float()
            logits_CV -= logits_CV.amax(-1, keepdim=True)
            counted_C1, index_C1 = (labels_C != IGNORE_INDEX)[:, None], labels_C.clamp(min=0)[:, None]
            label_logits_C1 = logits_CV.gather(1, index_C1)
            sum_C1 = logits_CV.exp_().sum(-1, keepdim=True)
            total += ((sum_C1.log() - label_logits_C1) * counted_C1).sum()
            # The gradient with respect to the logits, softmax minus one at the label, in place.
            logits_CV *= counted_C1 / sum_C1
            logits_CV.scatter_add_(1, index_C1, -counted_C1.float())
            d_logits_CV = logits_CV.to(dtype)
            d_hidden_CD.copy_(d_logits_CV @ weight)
            if dtype == weight_VD.dtype:
                d_weight_VD.addmm_(d_logits_CV.T, hidden_CD)
            else:
                d_weight_VD += d_logits_CV.T @ hidden_CD
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx, grad):
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        return grad * d_hidden_ND, grad * d_weight_VD, None, None


def cross_entropy(hidden_ND, weight_VD, labels_N, num_items=None) -> torch.Tensor:
    """The cross-entropy of the next tokens in nats: their sum divided by `num_items`, by default the number of labels.

    The logits are hidden W^T; labels of -100 are ignored. Under an autocast the products are in its dtype.
    """
    num_items = (labels_N != IGNORE_INDEX).sum() if num_items is None else num_items
    device_type = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else weight_VD.dtype
    with torch.autocast(device_type, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, labels_N, dtype) / num_items
