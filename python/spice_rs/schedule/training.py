"""One optimiser step of the proxy on the samples that were selected: AdamW with a linear warm-up.

The loss is the cross-entropy per learned token over all samples of the step, as `transformers.Trainer` has it. It is
summed up over microbatches, longest first, which are halved where memory runs out.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from spice_rs.errors import CorruptStoreError, InvalidInputError
from spice_rs.extraction.batching import Sample, Task, longest_first, take_batch
from spice_rs.extraction.gradients import multiplied
from spice_rs.extraction.memory import out_of_memory
from spice_rs.extraction.proxy import blocks, checkpointed

_SAMPLES_PER_BATCH = 256


@dataclass(frozen=True)
class Optimisation:
    """How the proxy is trained.

    Attributes:
        learning_rate: Of AdamW, after the warm-up.
        warmup_steps: Steps over which it grows from learning_rate / warmup_steps, linearly.
        weight_decay: Of AdamW.
        max_grad_norm: The gradient is scaled down to this norm; None for never.
        seed: Of dropout, together with the number of the step: so a step is the same whatever came before it.
    """

    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float | None
    seed: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        number: Steps made, this one included.
        samples: Samples that it learned from.
        tokens: Their learned tokens.
        loss: Nats per learned token, before the step.
        gradient_norm: Before it was scaled down.
        learning_rate: Of this step.
    """

    number: int
    samples: int
    tokens: int
    loss: float
    gradient_norm: float
    learning_rate: float


class ProxyTraining:
    """Trains some parameters of a model.

    Args:
        network: The model, on its device.
        parameters: Those that are trained, by name.
        device: Where the model is.
        tokens: Padded tokens per microbatch, to begin with.
        options: How.
        gradient_checkpointing: Form activations again on the way back, for memory.
        autocast: Multiply in bfloat16; None: on a GPU.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        device: torch.device,
        tokens: int,
        options: Optimisation,
        *,
        gradient_checkpointing: bool = False,
        autocast: bool | None = None,
    ) -> None:
        self.network = network
        self.parameters = dict(parameters)
        self.device = device
        self.tokens = tokens
        self.options = options
        self._checkpointing = gradient_checkpointing
        self._autocast = autocast
        self._shape = (0, 0)  # samples and tokens of the latest microbatch
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def step(self, task: Task, samples: Sequence[Sample], number: int) -> Step:
        """Make one step.

        Args:
            task: The loss.
            samples: What to learn from.
            number: Steps made so far.

        Raises:
            InvalidInputError: The gradient is not finite, or a single sample does not fit in memory.
        """
        while True:
            try:
                return self._step(task, samples, number)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self._shrink()  # outside the handler, where the failed batch's tensors are let go of

    def _step(self, task: Task, samples: Sequence[Sample], number: int) -> Step:
        ordered = longest_first(samples)
        tokens = sum(sample.num_tokens for sample in ordered)
        total, start = 0.0, 0
        self.optimizer.zero_grad(set_to_none=True)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            self._enter_modes(stack, number)
            while start < len(ordered):
                batch = take_batch(ordered, start, self.tokens, _SAMPLES_PER_BATCH)
                self._shape = (len(batch), batch[0].length)
                with multiplied(self.device, self._autocast):
                    losses = task.losses(batch, batch[0].length, self.device)
                (losses.sum() / tokens).backward()
                total += float(losses.detach().double().sum())
                start += len(batch)
        limit = self.options.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.parameters.values()), math.inf if limit is None else limit
        )
        if not math.isfinite(float(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise InvalidInputError(
                f"step {number + 1}: found a gradient norm of {float(norm)} and a loss of {total / tokens:.4g} nats per"
                " token, expected finite numbers. Lower learning_rate, and start in a new folder."
            )
        rate = self.options.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(number + 1, len(ordered), tokens, total / tokens, float(norm), rate)

    def _enter_modes(self, stack: ExitStack, number: int) -> None:
        """Turn dropout on, by a seed of this step's own, and checkpointing; afterwards all is as it was."""
        resting = [module for module in self.network.modules() if not module.training]

        def rest() -> None:
            for module in resting:
                module.training = False

        stack.callback(rest)
        on_gpu = self.device.type == "cuda"
        stack.enter_context(torch.random.fork_rng(devices=[self.device] if on_gpu else []))
        seed = int(np.random.SeedSequence([self.options.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        self.network.train()
        if self._checkpointing:
            some = [block for block in blocks(self.network) if not block.gradient_checkpointing]
            stack.enter_context(checkpointed(some, dropout=True))

    def _shrink(self) -> None:
        """Halve the microbatches after one that did not fit; the step begins anew."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        count, length = self._shape
        if count == 1:
            raise InvalidInputError(
                f"training: {length} tokens of one sample need more memory than there is. Lower max_length, set"
                " gradient_checkpointing, or train fewer layers."
            )
        self.tokens = length * (count // 2)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all that a step changes: weights, and the optimiser's state, by parameter."""
        found = {f"weight:{name}": parameter.detach() for name, parameter in self.parameters.items()}
        names = list(self.parameters)
        for number, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                found[f"{key}:{names[number]}"] = torch.as_tensor(value)
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuse what `tensors` does not return."""
        missing = [name for name in self.parameters if f"weight:{name}" not in tensors]
        strange = [
            f"{name} of shape {tuple(tensor.shape)}"
            for name, tensor in tensors.items()
            for key, _, parameter in [name.partition(":")]
            if parameter not in self.parameters
            or (tensor.shape != self.parameters[parameter].shape and (key == "weight" or tensor.ndim))
        ]
        if missing or strange:
            found = f"no weight:{missing[0]}" if missing else strange[0]
            raise CorruptStoreError(
                f"state: found {found} among the weights that were saved, expected those of the model that is trained. The"
                " run cannot go on: start anew in another folder."
            )

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` returned, in a process before this one.

        Raises:
            CorruptStoreError: These are tensors of something else.
        """
        names = list(self.parameters)
        self._check(tensors)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            key, _, parameter = name.partition(":")
            if key == "weight":
                with torch.no_grad():
                    self.parameters[parameter].copy_(tensor)
            else:
                state.setdefault(names.index(parameter), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
