"""Reads and steers a router's own code while it runs: what it weighs experts by, whom it chooses, and with experts barred.

Routers of different families score with a softmax, a sigmoid or neither, add biases, limit groups, and normalise before or
after they choose; but all of them choose by `topk` or `max`. So one watch over these calls serves every family, and the rest
of the rule stays the model's own.

Shape letters: T tokens, E experts, K experts per token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MARGIN = 0.01  # by which a steered score passes the others, as a fraction of their spread; SteerMoE's is 0.01 nats
GROUP_MARGIN = 3.0  # that wins for its group too, which is ranked by the sum of its best two
ACTIVATIONS = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "logsigmoid": torch.sigmoid}


def steered(scores, strength_E, margin: float = MARGIN):
    """Scores (..., E) with each expert's moved by `strength` (broadcastable), from -1 to 1; 0 leaves it as it is.

    An offset is added to the score: the fraction |strength| of the way to its end. At 1 that end is above the largest score
    of the token and at -1 below the smallest: SteerMoE's activation and deactivation (Fayyaz et al., 2025, arXiv 2509.09660,
    section 3), which set the log-softmax scores so. Steered experts keep their order among themselves.
    """
    finite = ~scores.isneginf()
    low, high = scores.masked_fill(~finite, torch.inf).amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    spread = (high - low).clamp_min(torch.finfo(scores.dtype).tiny)
    place = (scores.where(finite, low) - low) / spread  # 0 for the smallest, 1 for the largest
    above, below = high + margin * spread * (1 + place), low - margin * spread * (2 - place)
    offset = strength_E.abs() * (above.where(strength_E > 0, below) - scores.where(finite, low))
    return scores + offset.where(finite, 0)


class RouterWatch(TorchFunctionMode):
    """Active while one router runs, in one thread. `bias` ranks experts besides: -inf bars one, inf forces it, else 0.

    A barred expert cannot be chosen and a forced one always is; scores, weights and the choice of the others follow from the
    router's own code. Numbers from -1 to 1 steer: what the router ranks and weighs by is `steered`. `bias` is (E,), (T, E), or
    a function of the ranks (T, E) that returns such a tensor. `more` experts are chosen besides the router's own number.
    """

    def __init__(self, num_experts: int, top_k: int, bias: torch.Tensor | Callable | None = None, more: int = 0):
        super().__init__()
        self.num_experts, self.top_k, self.bias, self.more = num_experts, top_k, bias, more
        self.indices = self._values = self._ranks = self._scores = self._activation = self.scoring = None
        self._one_by_one = self._is_active = False

    def start(self) -> None:
        """Watches the calls of this thread from now on."""
        self.__enter__()
        self._is_active = True

    def stop(self) -> None:
        """Ends the watch, if it has not ended yet."""
        if self._is_active:
            self._is_active = False
            self.__exit__(None, None, None)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", "").replace("_", ""), kwargs or {}
        x = args[0] if args and isinstance(args[0], torch.Tensor) else kwargs.get("input")
        if x is None or not x.dim():
            return func(*args, **kwargs)
        over_experts = x.shape[-1] >= self.num_experts
        over_groups = not over_experts and x.dim() > 2 and x.shape[-2] * x.shape[-1] == self.num_experts
        if name in ("topk", "max") and over_groups:  # the best experts of each group
            return func(self._rank(x.flatten(-2), GROUP_MARGIN).view_as(x), *args[1:], **kwargs)
        if name == "topk" and over_experts:
            k, *args = [kwargs.pop("k")] if "k" in kwargs else args[1:]
            return self._choose(func(self._rank(x), k + self.more, *args, **kwargs), x)
        if name == "max" and over_experts:
            return self._choose_one(func, x, args[1:], kwargs)
        if name == "gather" and over_experts and not self._one_by_one:
            self._scores, self._activation = x, None
            if self.indices is not None and self.bias is not None:
                kwargs.pop("input", None)
                return func(self._steer(x).to(x.dtype), *args[1:], **kwargs)
        elif name in ACTIVATIONS and (over_experts or self.indices is not None) and self._activation is None:
            self._activation = ACTIVATIONS[name] if self.indices is not None else None
            self.scoring = "softmax" if name == "softmax" else "sigmoid"
        return func(*args, **kwargs)

    def _bias_of(self, x):
        """The bias of scores x (..., E or more) in their shape."""
        if callable(self.bias):  # at the first choice, when all experts stand for it
            self.bias = self.bias(x.flatten(0, -2)[:, : self.num_experts].float())
        bias = F.pad(self.bias.to(x.device), (0, x.shape[-1] - self.num_experts))
        return bias.reshape(x.shape) if bias.dim() > 1 else bias.expand_as(x)

    def _steer(self, x, margin: float = MARGIN):
        """Scores x, float32: `steered` by the strengths in the bias."""
        bias = self._bias_of(x)
        strength = bias.where(bias.isfinite(), 0)
        return steered(x.float(), strength, margin) if strength.any() else x.float()

    def _rank(self, x, margin: float = MARGIN):
        """Scores (..., E or more) as they rank the experts; those of experts that a group excludes stay above the barred."""
        if self.bias is None:
            return x
        bias = self._bias_of(x)
        rank = self._steer(x, margin).masked_fill(x.isneginf(), torch.finfo(torch.float32).min)
        return rank.masked_fill(bias.isneginf(), -torch.inf).masked_fill(bias.isposinf(), torch.inf)

    def _choose(self, result, x):
        """The result of `topk` over ranks, with the scores of the chosen in place of their ranks."""
        weighed = x if self.bias is None else self._steer(x).to(x.dtype)
        self.indices, self._values = result.indices, weighed.gather(-1, result.indices)
        self._ranks = self._scores = x
        self._activation = None
        return type(result)((self._values, self.indices))

    def _choose_one(self, func, x, args, kwargs):
        """A router that takes the experts one by one weighs each against those left: they must not see the barred ones."""
        if not self._one_by_one and self.bias is not None:
            bias, best = self._bias_of(x), self._rank(x).topk(self.top_k).indices
            others = torch.ones_like(x, dtype=torch.bool).scatter(-1, best, False)
            x.copy_(self._steer(x).masked_fill(others if bias.isposinf().any() else bias.isneginf(), -torch.inf))
        result = func(x, *args, **kwargs)
        if not self._one_by_one:
            self._one_by_one, self._activation, self.scoring = True, ACTIVATIONS["softmax"], "softmax"
            self._ranks = self._scores = x
            self.indices = result.indices
        return result

    @property
    def scores(self) -> torch.Tensor | None:
        """(T, E or more) float32: what the router weighs every expert by; None of a router that did not choose."""
        if self._scores is None:
            return None
        scores = self._scores.float().flatten(0, -2)
        return self._activation(scores) if self._activation else scores

    @property
    def ranks(self) -> torch.Tensor | None:
        """(T, E or more) float32: what the router ranks every expert by, without `bias_E`; None if it did not choose."""
        return None if self._ranks is None else self._ranks.float().flatten(0, -2)

    @property
    def weights(self) -> torch.Tensor:
        """(T, K) of `indices`, for a router whose weights are an activation of the chosen scores."""
        return self._activation(self._values.float()) if self._activation else self._values
