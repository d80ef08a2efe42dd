"""The loss of every row: ours against one row at a time with all logits, as the authors' code has it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.token_rows import TokenRows
from s2l_ray.tokens import TokenizedExample, tokens_table
from tests.benchmarks.harness import Benchmark, Ratio, alternate, peaks

PYTHIA_70M: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 50_304,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ROWS, MEAN_TOKENS, RESPONSE, BATCH_TOKENS, ROUNDS = 200, 190, 0.45, 2048, 3


def rows_of_real_length() -> TokenRows:
    """Make rows whose lengths spread as those of instruction data do; the tokens are drawn at random."""
    generator = np.random.default_rng(0)
    length_N = np.clip(generator.lognormal(np.log(MEAN_TOKENS) - 0.125, 0.5, ROWS), 16, 512).astype(int)
    examples = []
    for length in length_N.tolist():
        start = max(1, round(length * (1 - RESPONSE)))
        ids = generator.integers(1, PYTHIA_70M["vocab_size"], length).tolist()
        examples.append(TokenizedExample(ids, [start], [length], truncated=False))
    return TokenRows.from_table(tokens_table(range(ROWS), [None] * ROWS, examples))


def useful_flops(rows: TokenRows) -> float:
    """Count the products that no way to compute these losses can do without: no padding, the head on responses only."""
    hidden, layers = PYTHIA_70M["hidden_size"], PYTHIA_70M["num_hidden_layers"]
    weights = layers * (4 * hidden**2 + 2 * hidden * PYTHIA_70M["intermediate_size"])
    length_N = rows.length_N.astype(np.float64)
    # A token attends to those before it: half of the square.
    body_N = 2 * length_N * weights + 2 * layers * hidden * length_N**2
    head_N = 2 * rows.num_response_tokens_N.astype(np.float64) * hidden * PYTHIA_70M["vocab_size"]
    return float((body_N + head_N).sum())


def row_by_row(model: Any, rows: TokenRows) -> np.ndarray:
    """Compute the mean loss of each row as transformers does, one row at a time, with the logits of every position."""
    import torch

    losses = []
    with torch.no_grad():
        for position in range(len(rows)):
            batch = rows.batch([position], 0)
            input_ids, response = torch.from_numpy(batch.input_ids_BL), torch.from_numpy(batch.response_BL)
            labels = torch.where(response, input_ids, -100)
            losses.append(float(model(input_ids=input_ids, labels=labels).loss))
    return np.array(losses)


def measure() -> Iterator[Ratio]:
    """Time both, on all cores, and say what share of the machine's peak the useful products make."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **PYTHIA_70M)).eval()
    module, rows, cpu = response_loss_module(model), rows_of_real_length(), torch.device("cpu")

    def ours() -> np.ndarray:
        return mean_losses(module, rows, batch_tokens=BATCH_TOKENS, pad_id=0, device=cpu, bf16=False)

    np.testing.assert_allclose(ours(), row_by_row(model, rows), atol=1e-4)
    seconds, peer_seconds = alternate(ours, lambda: row_by_row(model, rows), ROUNDS)
    work = f"scoring {ROWS} rows of {int(rows.length_N.mean())} tokens, Pythia-70M's shape, fp32"
    yield Ratio(work, "row by row, all logits", seconds, peer_seconds, "s", ROUNDS)
    yield Ratio(
        work="the same, useful products",
        peer_name="the machine's peak in fp32",
        ours=useful_flops(rows) / seconds / 1e9,
        peer=float(peaks()["fp32_gflops"]),
        unit="GFLOP/s",
        rounds=ROUNDS,
    )


BENCHMARK = Benchmark("scoring", "the loss of every row, against one row at a time", measure)
