"""One fine-tuning by LoRA, and what it is worth: completion NLL per token on held-out records, exact answers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from scenes import Record
from spice_rs.data.dataset import Example, load_records, tokenise
from spice_rs.demo import model_files
from spice_rs.extraction.batching import TextTask
from spice_rs.extraction.loss import SummedLoss
from spice_rs.extraction.proxy import load_model, load_tokenizer

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")
"""What the paper puts a LoRA on."""

ANSWER = re.compile(r"(?:####|[Aa]nswer is|In all:)\s*(-?[\d,]+(?:\.\d+)?)")
"""How worked answers end: gsm8k's and reasoning-gym's."""


@dataclass(frozen=True)
class Outcome:
    """What one training gave.

    Attributes:
        nll: source → nats per learned token of held-out records, of all tokens together.
        exact: source → share of answers that are right, of the sources that have any.
        tokens: learned tokens in the training set.
        steps: optimiser steps.
        seconds: of the training alone.
    """

    nll: dict[str, float]
    exact: dict[str, float]
    tokens: int
    steps: int
    seconds: float


class Trainer:
    """A base model on its device, and trainings of fresh adapters on it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folder, self.file = settings["model"] or model_files()
        self.tokenizer = load_tokenizer(self.folder, gguf_file=self.file, trust_remote_code=False)
        self._base: torch.nn.Module | None = None

    @property
    def base(self) -> torch.nn.Module:
        """The model without an adapter, loaded once."""
        if self._base is None:
            self._base, _ = load_model(
                self.folder, gguf_file=self.file, device=self.device, trust_remote_code=False
            )
        return self._base

    def examples(self, records: Sequence[Record]) -> list[Example]:
        kept = [{name: record[name] for name in ("instruction", "response")} for record in records]
        return list(tokenise(load_records(kept), self.tokenizer, max_length=self.settings["max_length"]))

    def train(
        self,
        records: Sequence[Record],
        held_out: Mapping[str, Sequence[Record]],
        *,
        seed: int,
        length: Mapping[str, int],
    ) -> Outcome:
        """Train a fresh adapter and judge it.

        Args:
            records: training set.
            held_out: source → records to judge by.
            seed: of the adapter and of the order.
            length: {"steps": …} or {"epochs": …}; 0 for the untrained model.
        """
        model = self._adapted(seed)
        examples = self.examples(records)
        started = time.perf_counter()
        steps = self._fit(model, examples, seed, length)
        seconds = time.perf_counter() - started
        nll, exact = self.judge(model, held_out)
        model.unload()
        return Outcome(nll, exact, sum(each.num_tokens for each in examples), steps, seconds)

    def trained(self, records: Sequence[Record], *, seed: int, length: Mapping[str, int]) -> torch.nn.Module:
        """Return the model with an adapter trained on the records merged into its weights. The base is spent."""
        model = self._adapted(seed)
        self._fit(model, self.examples(records), seed, length)
        merged: torch.nn.Module = model.merge_and_unload()
        self._base = None
        return merged

    def judge(
        self, model: torch.nn.Module, held_out: Mapping[str, Sequence[Record]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return NLL per token by source and over all, and the share of right answers by source."""
        model.eval()
        losses, tokens, exact = {}, {}, {}
        with torch.no_grad():
            for source, records in held_out.items():
                examples = sorted(self.examples(records), key=lambda each: each.length)
                batches = [examples[at : at + 16] for at in range(0, len(examples), 16)]
                losses[source] = sum(float(self._losses(model, batch).sum()) for batch in batches)
                tokens[source] = sum(each.num_tokens for each in examples)
                asked = [record for record in records if ANSWER.search(record["response"])]
                if asked and self.settings["exact_rows"]:
                    exact[source] = self._exact(model, asked[: self.settings["exact_rows"]])
        nll = {source: losses[source] / tokens[source] for source in losses}
        return {**nll, "all": sum(losses.values()) / sum(tokens.values())}, exact

    def _adapted(self, seed: int) -> Any:
        torch.manual_seed(seed)
        config = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(MODULES), task_type="CAUSAL_LM"
        )
        return get_peft_model(self.base, config)

    def _fit(
        self, model: torch.nn.Module, examples: list[Example], seed: int, length: Mapping[str, int]
    ) -> int:
        size = self.settings["batch"]
        per_epoch = -(-len(examples) // size)
        steps = length["steps"] if "steps" in length else length["epochs"] * per_epoch
        draws = np.random.default_rng(seed)
        order = np.concatenate(
            [draws.permutation(len(examples)) for _ in range(-(-steps * size // max(1, len(examples))))]
            or [[]]
        )
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.settings["learning_rate"], weight_decay=0.0)
        warm = max(1, round(0.03 * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
        )
        model.train()
        for step in range(steps):
            batch = [examples[int(row)] for row in order[step * size : (step + 1) * size]]
            learned = sum(each.num_tokens for each in batch)
            # Short and long ones apart, so that little is padding; the gradient is the batch's all the same.
            batch.sort(key=lambda each: each.length)
            for at in range(0, len(batch), self.settings["micro_batch"]):
                part = batch[at : at + self.settings["micro_batch"]]
                (self._losses(model, part).sum() / learned).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        return steps

    def _losses(self, model: torch.nn.Module, batch: Sequence[Example]) -> torch.Tensor:
        longest = max(each.length for each in batch)
        task = TextTask(SummedLoss(model, model.get_output_embeddings(), None))  # type: ignore[operator]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings["autocast"]):
            return task.losses(batch, longest, self.device)

    def _exact(self, model: Any, records: Sequence[Record]) -> float:
        right = 0
        for record in records:
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": record["instruction"]}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            ).to(self.device)
            output = model.generate(
                **prompt, max_new_tokens=256, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
            )
            text = self.tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            expected, found = ANSWER.findall(record["response"])[-1], ANSWER.findall(text)
            right += bool(found) and found[-1].replace(",", "") == expected.replace(",", "")
        return right / len(records)
