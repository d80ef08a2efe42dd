"""Fine-tuning steps: our engines against a bare torch loop on the same batches, with the same loss and optimizer."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from s2l_ray.engines import DeepSpeedEngine, EngineSettings, TorchEngine, adamw
from s2l_ray.losses import response_loss_module, to_tensors
from s2l_ray.token_rows import TokenRows
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
TOKENS, MICRO, MICROS, ROUNDS = 256, 2, 2, 5
SETTINGS = EngineSettings(
    weight_decay=0.0, gradient_clipping=1.0, micro_batches=MICROS, micro_batch_size=MICRO, world_size=1, bf16=False
)


def _model() -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **SHAPE))


def measure() -> Iterator[Ratio]:
    """Time optimizer steps of two micro-batches, the bare loop by turns with each engine."""
    import torch
    import torch.distributed as dist

    ids = np.random.default_rng(0).integers(1, SHAPE["vocab_size"], (MICRO * MICROS, TOKENS)).tolist()
    rows = [TokenizedExample(row, [TOKENS // 2], [TOKENS], truncated=False) for row in ids]
    table = TokenRows.from_table(tokens_table(range(len(rows)), [None] * len(rows), rows))
    batches = [table.batch(range(start, start + MICRO), 0) for start in range(0, len(rows), MICRO)]
    tokens, cpu = int(table.num_response_tokens_N.sum()), torch.device("cpu")

    def bare() -> Callable[[], None]:
        model = _model()
        module, optimizer = response_loss_module(model), adamw(model, SETTINGS)

        def step() -> None:
            model.train()
            optimizer.zero_grad(set_to_none=True)
            for batch in batches:
                (module(*to_tensors(batch, cpu)).sum() / tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.gradient_clipping)
            for group in optimizer.param_groups:
                group["lr"] = 1e-5
            optimizer.step()

        return step

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo")
    parameters = sum(parameter.numel() for parameter in _model().parameters())
    try:
        for name, build in (
            ("plain torch", lambda: TorchEngine(_model(), SETTINGS, cpu)),
            ("DeepSpeed, ZeRO 0", lambda: DeepSpeedEngine(_model(), SETTINGS, cpu, 0)),
            ("DeepSpeed, ZeRO 1", lambda: DeepSpeedEngine(_model(), SETTINGS, cpu, 1)),
        ):
            engine, peer = build(), bare()

            def ours(engine: Any = engine) -> None:
                engine.train_step(batches, tokens, 1e-5, 0)

            ours()
            peer()
            seconds, peer_seconds = alternate(ours, peer, ROUNDS)
            work = f"a step of {name}, {parameters / 1e6:.0f}M parameters, {TOKENS * MICRO * MICROS} tokens, fp32"
            yield Ratio(work, "a bare torch loop", seconds, peer_seconds, "s", ROUNDS)
    finally:
        dist.destroy_process_group()


BENCHMARK = Benchmark("finetuning", "our engines against a bare torch loop", measure)
