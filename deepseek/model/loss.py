"""Cross-entropy over a large vocabulary, some rows at a time, so that its logits are never all in memory.

For 2,048 tokens and a vocabulary of 49,152 the logits, their softmax and its gradient take 400 MB each, and most of the time
of a loss goes into fetching that memory. Parts of some rows use the same memory one after the other, and the gradient of
each is at hand the moment its softmax is (Wijmans et al., 2024, Cut Your Losses in Large-Vocabulary Language Models,
section 4).

Shape letters: N tokens, D hidden width, V vocabulary, C the tokens of a part.
"""

import torch

CHUNK_LOGITS = 2**25  # logits in memory at a time; with a quarter of it a training step takes 2 % longer
IGNORED = -100


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, labels_N, dtype):
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_gradient_ND = torch.empty_like(hidden_ND)
        weight_gradient_VD = torch.zeros_like(weight_VD)
        weight = weight_VD.to(dtype)  # once, and not for every part
        count = max(1, CHUNK_LOGITS // len(weight_VD))
        for hidden_CD, labels_C, gradient_CD in zip(
            hidden_ND.to(dtype).split(count), labels_N.split(count), hidden_gradient_ND.split(count)
        ):
            logits_CV = (hidden_CD @ weight.T).float()
            logits_CV -= logits_CV.amax(-1, keepdim=True)
            kept_C1, index_C1 = (labels_C != IGNORED)[:, None], labels_C.clamp(min=0)[:, None]
            chosen_C1 = logits_CV.gather(1, index_C1)
            sum_C1 = logits_CV.exp_().sum(-1, keepdim=True)
            total += ((sum_C1.log() - chosen_C1) * kept_C1).sum()
            # The gradient with respect to the logits, softmax less one at the label, in their place.
            logits_CV *= kept_C1 / sum_C1
            logits_CV.scatter_add_(1, index_C1, -kept_C1.float())
            change_CV = logits_CV.to(dtype)
            gradient_CD.copy_(change_CV @ weight)
            if dtype == weight_VD.dtype:
                weight_gradient_VD.addmm_(change_CV.T, hidden_CD)
            else:
                weight_gradient_VD += change_CV.T @ hidden_CD
        ctx.save_for_backward(hidden_gradient_ND, weight_gradient_VD)
        return total

    @staticmethod
    def backward(ctx, gradient):
        hidden_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        return gradient * hidden_gradient_ND, gradient * weight_gradient_VD, None, None


def cross_entropy(hidden_ND, weight_VD, labels_N, count=None) -> torch.Tensor:
    """The cross-entropy of the next tokens, nats: their sum divided by `count`, by default the number of labels.

    The logits are hidden W^T; a label of -100 is left out. Under an autocast its products are in the autocast's precision.
    """
    count = (labels_N != IGNORED).sum() if count is None else count
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    with torch.autocast(kind, enabled=False):
        return _Summed.apply(hidden_ND, weight_VD, labels_N, dtype) / count
