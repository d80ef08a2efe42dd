"""Fine-tuning steps: our engines against a bare torch loop on the same batches, with the same loss and optimizer."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from s2l_ray.engines import DeepSpeedEngine, Engine, EngineSettings, TorchEngine, adamw
from s2l_ray.losses import response_loss_module, to_tensors
from s2l_ray.token_rows import Batch, TokenRows
from s2l_ray.tokens import TokenizedExample, tokens_table
from tests.benchmarks.harness import Benchmark, Ratio, alternate

SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 16_384,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TOKENS, MICRO = 256, 2
FEW, MANY = 2, 8
"""Micro-batches of a step. What DeepSpeed copies, it copies once a step, however many tokens the step has."""
ROUNDS = {FEW: 5, MANY: 3}


def settings(micro_batches: int) -> EngineSettings:
    """Return the settings of one worker in fp32."""
    sizes = {"micro_batches": micro_batches, "micro_batch_size": MICRO, "world_size": 1}
    return EngineSettings(weight_decay=0.0, gradient_clipping=1.0, bf16=False, **sizes)


def _model() -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **SHAPE))


def measure() -> Iterator[Ratio]:
    """Time optimizer steps, the bare loop by turns with each engine."""
    import torch
    import torch.distributed as dist

    cpu = torch.device("cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo")
    engines: dict[str, Callable[[EngineSettings], Engine]] = {
        "plain torch": lambda of: TorchEngine(_model(), of, cpu),
        "DeepSpeed, ZeRO 0": lambda of: DeepSpeedEngine(_model(), of, cpu, 0),
        "DeepSpeed, ZeRO 1": lambda of: DeepSpeedEngine(_model(), of, cpu, 1),
    }
    try:
        for micros, name in [*((FEW, name) for name in engines), *((MANY, name) for name in list(engines)[1:])]:
            yield _measured(name, engines[name](settings(micros)), micros)
    finally:
        dist.destroy_process_group()


def _measured(name: str, engine: Engine, micros: int) -> Ratio:
    batches, tokens = _batches(micros)
    peer = _bare(batches, tokens)

    def ours() -> None:
        engine.train_step(batches, tokens, 1e-5, 0)

    ours()
    peer()
    seconds, peer_seconds = alternate(ours, peer, ROUNDS[micros])
    parameters = sum(parameter.numel() for parameter in _model().parameters())
    work = f"a step of {name}, {parameters / 1e6:.0f}M parameters, {TOKENS * MICRO * micros:,} tokens, fp32"
    return Ratio(work, "a bare torch loop", seconds, peer_seconds, "s", ROUNDS[micros])


def _batches(micros: int) -> tuple[list[Batch], int]:
    """Return micro-batches, and the response tokens of all."""
    n_rows = MICRO * micros
    ids = np.random.default_rng(0).integers(1, SHAPE["vocab_size"], (n_rows, TOKENS)).tolist()
    rows = [TokenizedExample(row, [TOKENS // 2], [TOKENS], truncated=False) for row in ids]
    table = TokenRows.from_table(tokens_table(range(n_rows), [None] * n_rows, rows))
    batches = [table.batch(range(start, start + MICRO), 0) for start in range(0, n_rows, MICRO)]
    return batches, int(table.num_response_tokens_N.sum())


def _bare(batches: list[Batch], tokens: int) -> Callable[[], None]:
    """Return a step with the same loss and optimizer, and nothing around it."""
    import torch

    model, of, cpu = _model(), settings(len(batches)), torch.device("cpu")
    module, optimizer = response_loss_module(model), adamw(model, of)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            (module(*to_tensors(batch, cpu)).sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), of.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = 1e-5
        optimizer.step()

    return step


BENCHMARK = Benchmark("finetuning", "our engines against a bare torch loop", measure)
