"""One fine-tuning by LoRA, and what it is worth: completion NLL per token on held-out records, exact answers."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from device import plain_lora, upper_layers
from scenes import Record
from spice_rs.data.dataset import Example, load_records, tokenise
from spice_rs.demo import model_files
from spice_rs.extraction.batching import TextTask
from spice_rs.extraction.loss import SummedLoss
from spice_rs.extraction.proxy import load_model, load_tokenizer

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")
"""What the paper puts a LoRA on."""

PROXY_SEED = 100
"""Of the random rows that a further-trained proxy has seen."""

WARM_SHARE, WARM_EPOCHS = 0.05, 4
"""LESS's warm-up."""

ANSWER = re.compile(r"(?:####|[Aa]nswer is|In all:)\s*(-?[\d,]+(?:\.\d+)?)")
"""How worked answers end: gsm8k's and reasoning-gym's."""


@dataclass(frozen=True)
class Outcome:
    """What one training gave.

    Attributes:
        nll: source → nats per learned token of held-out records, of all tokens together.
        exact: source → share of answers that are right, of the sources that have any.
        losses: source → (loss, learned tokens) of each held-out record, in nats.
        tokens: learned tokens in the training set.
        steps: optimiser steps.
        seconds: of the training alone.
    """

    nll: dict[str, float]
    exact: dict[str, float]
    losses: dict[str, list[tuple[float, int]]]
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
        self._warmed: tuple[Any, torch.optim.Optimizer] | None = None

    @property
    def base(self) -> torch.nn.Module:
        """The model without an adapter, loaded once."""
        if self._base is None:
            self._base, _ = load_model(
                self.folder, gguf_file=self.file, device=self.device, trust_remote_code=False
            )
            if self.settings.get("upper_layers"):
                self._base = upper_layers(
                    self._base, self.settings["upper_layers"], autocast=self.settings["autocast"]
                )
        return self._base

    def examples(self, records: Sequence[Record]) -> list[Example]:
        kept = [{name: record[name] for name in ("instruction", "response")} for record in records]
        if not kept:
            return []
        return list(tokenise(load_records(kept), self.tokenizer, max_length=self.settings["max_length"]))

    def keep_states(self, records: Sequence[Record], folder: Path) -> None:
        """Compute what the frozen lower layers make of the records once, where the settings have `upper_layers`."""
        if self.settings.get("upper_layers"):
            base: Any = self.base
            base.model.embed_tokens.keep(self.examples(records), folder)

    def _ensure(self, examples: Sequence[Example]) -> None:
        if self.settings.get("upper_layers"):
            base: Any = self.base
            base.model.embed_tokens.ensure(examples, self.device)

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
            length: {"steps": …} in batches of the settings, {"epochs": …}, or both: so many steps in which each record
                is seen so often, whatever the number of records; 0 steps for the untrained model.
        """
        model = self.adapted(seed)
        examples = self.examples(records)
        self._ensure(examples)
        started = time.perf_counter()
        steps, _ = self._fit(model, examples, seed, length)
        seconds = time.perf_counter() - started
        nll, exact, each_loss = self.judge(model, held_out)
        model.unload()
        return Outcome(nll, exact, each_loss, sum(each.num_tokens for each in examples), steps, seconds)

    def proxy(self, name: str, records: Sequence[Record]) -> tuple[Any, dict[str, Any]]:
        """Return a model to take gradients of and the arguments of `spice_rs.extract`.

        Args:
            name: "base" (fresh LoRA on the model), "seed 1" (another), "trained" (on random rows first), "warm" (LESS's:
                of an adapter trained on a twentieth, as Adam scales them), or "warm target" (the same unscaled).
            records: of which random rows are what proxies have seen.
        """
        options = {"tokenizer": self.tokenizer, **self.settings["extraction"]}
        options["seed"] = 1 if name == "seed 1" else 0
        draw = np.random.default_rng(PROXY_SEED).permutation(len(records))
        if name in ("warm", "warm target"):
            few = [records[row] for row in draw[: round(WARM_SHARE * len(records))]]
            model, optimiser = self._warm(few)
            options.pop("lora_rank", None)
            return model, {**options, **({"optimizer": optimiser} if name == "warm" else {})}
        if name == "trained":
            few = [records[row] for row in draw[: self.settings["k"]]]
            return self.trained(few, seed=PROXY_SEED, length={"epochs": 2}), options
        if self.settings.get("upper_layers"):
            return self.base, options
        options.pop("tokenizer")
        return self.folder, {**options, "gguf_file": self.file}

    def _warm(self, records: Sequence[Record]) -> tuple[Any, torch.optim.Optimizer]:
        """The adapter of LESS's warm-up, four epochs, and its optimiser; made once."""
        if self._warmed is None:
            whole = Trainer(self.settings)  # of its own: the adapter stays
            model = whole.adapted(PROXY_SEED, plain=False)  # extraction looks at its layers' forward
            examples = whole.examples(records)
            optimiser = whole._fit(model, examples, PROXY_SEED, {"epochs": WARM_EPOCHS})[1]
            self._warmed = model, optimiser
        return self._warmed

    def trained(self, records: Sequence[Record], *, seed: int, length: Mapping[str, int]) -> torch.nn.Module:
        """Return the model with an adapter trained on the records merged into its weights. The base is spent."""
        model = self.adapted(seed)
        self._fit(model, self.examples(records), seed, length)
        merged: torch.nn.Module = model.merge_and_unload()
        self._base = None
        return merged

    def judge(
        self, model: torch.nn.Module, held_out: Mapping[str, Sequence[Record]]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, list[tuple[float, int]]]]:
        """Return NLL per token by source and over all, the share of right answers, and loss and tokens of each record."""
        model.eval()
        exact: dict[str, float] = {}
        found: dict[str, list[tuple[float, int]]] = {}
        for source, records in held_out.items():
            examples = self.examples(records)
            self._ensure(examples)
            losses = np.zeros(len(examples))
            order = sorted(range(len(examples)), key=lambda row: examples[row].length)
            with torch.no_grad():
                for at in range(0, len(order), 16):
                    rows = order[at : at + 16]
                    losses[rows] = self._losses(model, [examples[row] for row in rows]).double().cpu().numpy()
            found[source] = [
                (round(float(loss), 5), each.num_tokens) for loss, each in zip(losses, examples, strict=True)
            ]
            asked = [record for record in records if ANSWER.search(record["response"])]
            if asked and self.settings["exact_rows"]:
                exact[source] = self._exact(model, asked[: self.settings["exact_rows"]])
        sums = {source: np.array(pairs).sum(0) for source, pairs in found.items()}
        nll = {source: float(loss / tokens) for source, (loss, tokens) in sums.items()}
        total = np.sum(list(sums.values()), 0)
        return {**nll, "all": float(total[0] / total[1])}, exact, found

    def adapted(self, seed: int, *, plain: bool = True) -> Any:
        """The base with a fresh adapter; not `plain` where its layers must be used as `peft` uses them."""
        torch.manual_seed(seed)
        config = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(MODULES), task_type="CAUSAL_LM"
        )
        model = get_peft_model(self.base, config)
        if self.settings.get("upper_layers") and plain:
            plain_lora(model)
        return model

    def _fit(
        self, model: torch.nn.Module, examples: list[Example], seed: int, length: Mapping[str, int]
    ) -> tuple[int, torch.optim.Optimizer]:
        batches = self.batches(len(examples), seed, length)
        steps = len(batches)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.settings["learning_rate"], weight_decay=0.0)
        warm = max(1, round(0.03 * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
        )
        model.train()
        for rows in batches:
            batch = [examples[row] for row in rows.tolist()]
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
        return steps, optimiser

    def batches(self, count: int, seed: int, length: Mapping[str, int]) -> list[np.ndarray]:
        """The records of each step of a training on so many; see `train`."""
        size = self.settings["batch"]
        steps = length["steps"] if "steps" in length else length["epochs"] * -(-count // size)
        if not steps:
            return []
        draws = np.random.default_rng(seed)
        if "steps" in length and "epochs" in length:
            order = np.concatenate([draws.permutation(count) for _ in range(length["epochs"])])
            return [part for part in np.array_split(order, steps) if len(part)]
        order = np.concatenate([draws.permutation(count) for _ in range(-(-steps * size // count))])
        return [order[step * size : (step + 1) * size] for step in range(steps)]

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
