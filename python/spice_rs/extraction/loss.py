"""The loss whose gradient is stored: cross-entropy, summed over a sample's learned tokens.

Logits are made at the learned positions alone where the model allows it: the output head's input is replaced
by those positions' hidden states on its way in, so that whatever the model does to logits afterwards
(scaling, soft caps) still happens. Which positions these are is found on the host, where the labels come from:
asking a GPU would wait for it. Both the loss and its gradient are computed in float32, in chunks of
positions, whatever the logits' dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.data.dataset import IGNORED
from spice_rs.errors import InvalidInputError
from spice_rs.extraction.transfer import to_device

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (B, T, V), labels (B, T) not shifted, -100 where not learned) → one loss per sample, (B,)."""

OwnLossFunction = Callable[[torch.nn.Module, Any], torch.Tensor]
"""(model, batch of the user's own data) → one loss per sample, (B,)."""

CHUNK = 1 << 24  # logits handled at a time in float32: 64 MB


class _TokenCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """-log softmax(logits)[target] per position; keeps no float32 copy of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        step = max(1, CHUNK // logits.shape[1])
        norms = torch.cat([part.float().logsumexp(dim=1) for part in logits.split(step)])  # (N,)
        ctx.save_for_backward(logits, targets, norms)
        picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        return norms - picked.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, norms = ctx.saved_tensors
        scale = gradients[0].unsqueeze(1)  # (N, 1)
        result = torch.empty_like(logits)
        step = max(1, CHUNK // logits.shape[1])
        for start in range(0, len(logits), step):
            chunk = slice(start, start + step)
            softmax = (logits[chunk].float() - norms[chunk].unsqueeze(1)).exp_()
            softmax.scatter_add_(1, targets[chunk].unsqueeze(1), softmax.new_full((len(softmax), 1), -1.0))
            result[chunk] = softmax.mul_(scale[chunk])
        return result, None


def token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each position in nats.

    Args:
        logits: (N, V), any float dtype.
        targets: (N,) int64.

    Returns:
        (N,) float32, differentiable in the logits.
    """
    loss: torch.Tensor = _TokenCrossEntropy.apply(logits, targets)
    return loss


@dataclass(frozen=True)
class Learned:
    """The N positions of a batch whose next token is learned, in order; each (N,) int64.

    Attributes:
        positions: b·T + t.
        targets: The token at (b, t + 1).
        samples: b.
    """

    positions: torch.Tensor
    targets: torch.Tensor
    samples: torch.Tensor

    @staticmethod
    def of(labels: torch.Tensor, device: torch.device) -> Learned:
        """Of labels (B, T) on the host, not shifted, `IGNORED` where not learned."""
        samples, before = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        found = (samples * labels.shape[1] + before, labels[samples, before + 1], samples)
        return Learned(*(to_device(each, device) for each in found))


class SummedLoss:
    """Per-sample losses of a causal language model.

    Args:
        model: Called as model(input_ids=…, attention_mask=…); gives `.logits`, or the logits themselves.
        head: The output head, if logits may be made at the learned positions alone.
        loss_fn: Replaces the cross-entropy; sees all positions.
    """

    def __init__(
        self, model: torch.nn.Module, head: torch.nn.Module | None, loss_fn: LossFunction | None
    ) -> None:
        self.model = model
        self.head = head if loss_fn is None else None
        self.loss_fn = loss_fn
        self.options = {"use_cache": False} if takes_cache(model) else {}
        _check_forward(model, self.options)

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, learned: Learned
    ) -> torch.Tensor:
        """Losses (B,) float32, each the sum over the sample's learned tokens.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64, 0 where padded.
            labels: (B, T) int64, not shifted, `IGNORED` where not learned.
            learned: What the labels say.
        """
        handle = None
        if self.head is not None:

            def keep_learned(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
                del module
                if not args or args[0].shape[:-1] != labels.shape:
                    return None
                hidden = args[0].flatten(0, 1).index_select(0, learned.positions)
                return (hidden.unsqueeze(0), *args[1:])  # (1, N, hidden)

            handle = self.head.register_forward_pre_hook(keep_learned)
        try:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options)
        finally:
            if handle is not None:
                handle.remove()
        logits = logits_of(output)
        if self.loss_fn is not None:
            return self.loss_fn(logits, labels)
        # The two cases differ in shape: the last position is never learned, so N < T where B = 1.
        everywhere = logits.shape[:-1] == labels.shape
        if not everywhere and logits.shape[:-1] != (1, len(learned.positions)):
            raise InvalidInputError(
                f"model: found logits of shape {tuple(logits.shape)} for {tuple(labels.shape)} tokens, expected one "
                "row for each; adapters that put tokens of their own before the text (prompt tuning) are not supported"
            )
        logits = logits.flatten(0, -2)
        if everywhere:
            logits = logits.index_select(0, learned.positions)  # (N, V)
        losses = token_cross_entropy(logits, learned.targets)  # (N,)
        return losses.new_zeros(len(labels)).index_add(0, learned.samples, losses)


def takes_cache(model: torch.nn.Module) -> bool:
    """Whether the model may keep what it has computed for the next token, which is of no use here."""
    return hasattr(getattr(model, "config", None), "use_cache")


def logits_of(output: Any) -> torch.Tensor:
    """The logits in what a causal language model gives.

    Raises:
        InvalidInputError: There are none.
    """
    if isinstance(output, tuple) and output:
        output = output[0]
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise InvalidInputError(
            f"model: found {type(output).__name__} returned, expected logits (B, T, V), or an object with .logits"
        )
    return logits


def _check_forward(model: Any, options: dict[str, Any]) -> None:
    """Refuses a model that cannot be called as those of transformers are."""
    try:
        inspect.signature(model.forward).bind(input_ids=None, attention_mask=None, **options)
    except ValueError:
        return  # it has no signature to look at
    except TypeError as error:
        raise InvalidInputError(
            f"{type(model).__name__}.forward: found {error}, expected a model that is called as model(input_ids=…, "
            "attention_mask=…) and gives logits. Wrap it in a module that is."
        ) from None
