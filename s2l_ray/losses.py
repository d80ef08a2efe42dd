"""Per-example loss without the logits of prompt tokens, and per-example hidden states.

The head of a language model costs as much per position as it has vocabulary; only positions that predict a
response token need it. Right padding needs no attention mask: in a causal model no token looks ahead.
Legend: N examples, B batch, L tokens, R response tokens of a batch, D width, V vocabulary, or a tile of it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.token_rows import Batch, TokenRows

if TYPE_CHECKING:
    import torch

LOSS_GRID = 2.0**-20
"""Losses are stored as multiples of this [nats/token], so that float64 sums of them are exact in any order."""

HEAD_CHUNK = 4096
"""Response positions per call of the head where no gradient is asked for."""
VOCABULARY_TILE = 1024
"""Tokens of the vocabulary whose logits a CPU computes at once: for 1,000 positions 4 MB, which stay in its cache."""


def response_loss_module(model: "torch.nn.Module") -> "torch.nn.Module":
    """Wrap a causal language model into a module that returns loss sums [nats], one per example.

    `module(input_ids_BL, response_BL) -> loss_B float32`; the sum over response tokens, not their mean. The wrapped
    model is `module.model`.
    """
    import torch

    class ResponseLoss(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.head_is_plain = head_is_plain(model)

        def forward(self, input_ids_BL: torch.Tensor, response_BL: torch.Tensor) -> torch.Tensor:
            row_R, position_R = response_BL.nonzero(as_tuple=True)
            label_R = input_ids_BL[row_R, position_R]
            if self.head_is_plain:
                hidden_BLD = self.model.base_model(input_ids=input_ids_BL, use_cache=False).last_hidden_state
                hidden_RD = hidden_BLD[row_R, position_R - 1]
                head = self.model.get_output_embeddings()
                # Once where gradients are asked for: each call of the head gathers its weight from all workers under
                # ZeRO 3, and would wait for ever for those with fewer positions.
                chunk = max(1, len(label_R)) if torch.is_grad_enabled() else HEAD_CHUNK
                parts = zip(hidden_RD.split(chunk), label_R.split(chunk), strict=True)
                loss_R = torch.cat([_head_losses(head, part_RD, part_R) for part_RD, part_R in parts])
            else:
                logits_BLV = self.model(input_ids=input_ids_BL, use_cache=False).logits
                logits_RV = logits_BLV[row_R, position_R - 1].float()
                loss_R = torch.nn.functional.cross_entropy(logits_RV, label_R, reduction="none")
            # Unlike an `index_add`, this sum has one order on a GPU too.
            loss_BL = loss_R.new_zeros(input_ids_BL.shape).index_put((row_R, position_R), loss_R)
            return loss_BL.sum(dim=1)

    return ResponseLoss()


def _head_losses(head: "torch.nn.Module", hidden_RD: "torch.Tensor", label_R: "torch.Tensor") -> "torch.Tensor":
    """Return the cross entropy of each position, float32 [R].

    Where no gradient is asked for, a CPU goes through the vocabulary in tiles that stay in its cache: logits written to
    memory and read again cost a fifth of the head's time.
    """
    import torch
    from torch.nn.functional import cross_entropy, linear

    if torch.is_grad_enabled() or hidden_RD.device.type != "cpu" or type(head) is not torch.nn.Linear:
        return cross_entropy(head(hidden_RD).float(), label_R, reduction="none")
    total_R = torch.full(label_R.shape, -torch.inf)
    own_R = torch.full(label_R.shape, torch.nan)  # of a label beyond the vocabulary
    for start in range(0, len(head.weight), VOCABULARY_TILE):
        stop = start + VOCABULARY_TILE
        bias = None if head.bias is None else head.bias[start:stop]
        logits_RV = linear(hidden_RD, head.weight[start:stop], bias).float()
        total_R = torch.logaddexp(total_R, logits_RV.logsumexp(dim=1))
        here_R = ((label_R >= start) & (label_R < stop)).nonzero(as_tuple=True)[0]
        own_R[here_R] = logits_RV[here_R, label_R[here_R] - start]
    return total_R - own_R


def head_is_plain(model: "torch.nn.Module") -> bool:
    """Return whether the logits are just the output embedding of the last hidden state.

    Some architectures scale or cap their logits after the head, or transform before it; they take the long way.
    What the head puts out is enlarged for the probe, since a cap shows on large logits only.
    """
    import torch

    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    seen: list[torch.Tensor] = []

    def enlarge(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        seen[:] = [inputs[0], logits * 1e3]
        return seen[1]

    probe_BL = torch.tensor([[0, 1, 1, 0]], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    hook = head.register_forward_hook(enlarge)
    try:
        with torch.no_grad():
            logits_BLV = model(input_ids=probe_BL, use_cache=False).logits
            hidden_BLD = model.base_model(input_ids=probe_BL, use_cache=False).last_hidden_state
    finally:
        hook.remove()
        model.train(was_training)
    if not seen or seen[0].shape != hidden_BLD.shape or seen[1].shape != logits_BLV.shape:
        return False
    pairs = ((seen[0], hidden_BLD), (seen[1], logits_BLV))
    return all(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3) for a, b in pairs)


def to_tensors(batch: Batch, device: "torch.device") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Move a batch to a device."""
    import torch

    return (
        torch.from_numpy(batch.input_ids_BL).to(device, non_blocking=True),
        torch.from_numpy(batch.response_BL).to(device, non_blocking=True),
    )


def mean_losses(
    module: "torch.nn.Module", rows: TokenRows, *, batch_tokens: int, pad_id: int, device: "torch.device", bf16: bool
) -> NDArray[np.float32]:
    """Return the mean loss per response token of every example, float32 [N], rounded to `LOSS_GRID` [nats/token].

    Batches depend on the rows alone, so that any worker computes the same bits. A batch that does not fit into
    memory is halved; NaN and infinity are returned as they are, for the caller to name the rows. Dropout is off: the
    module is put into evaluation mode.

    Args:
        module: from `response_loss_module`.

    Raises:
        MemoryError: a single example does not fit.
    """
    return _mean_per_token(_Forward(module, rows, pad_id, device, bf16), batch_tokens)


def mean_hidden_states(
    model: "torch.nn.Module", rows: TokenRows, *, batch_tokens: int, pad_id: int, device: "torch.device", bf16: bool
) -> NDArray[np.float32]:
    """Return the mean of the last hidden states over every example's response tokens, float32 [N, D].

    The last hidden states are what the base model puts out, after its final norm. Batches, memory and rounding are
    those of `mean_losses`.

    Raises:
        MemoryError: a single example does not fit.
    """
    return _mean_per_token(_Forward(_hidden_sum_module(model), rows, pad_id, device, bf16), batch_tokens)


def _hidden_sum_module(model: "torch.nn.Module") -> "torch.nn.Module":
    import torch

    class HiddenSum(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids_BL: torch.Tensor, response_BL: torch.Tensor) -> torch.Tensor:
            hidden_BLD = self.model.base_model(input_ids=input_ids_BL, use_cache=False).last_hidden_state
            return (hidden_BLD.float() * response_BL[:, :, None]).sum(dim=1)

    return HiddenSum()


@dataclass(frozen=True)
class _Forward:
    """A module that sums something over the response tokens of each example, and the rows it is for."""

    module: "torch.nn.Module"
    rows: TokenRows
    pad_id: int
    device: "torch.device"
    bf16: bool

    def sums(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the sums of some rows, [B] or [B, D]; halves a batch that does not fit into memory."""
        import torch

        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                sum_B = self.module(*to_tensors(self.rows.batch(positions, self.pad_id), self.device))
            return np.asarray(sum_B.double().cpu().numpy())
        except torch.OutOfMemoryError:
            if len(positions) == 1:
                raise MemoryError(int(self.rows.example_id_N[positions[0]])) from None
        torch.cuda.empty_cache()
        half = len(positions) // 2
        return np.concatenate([self.sums(part) for part in (positions[:half], positions[half:])])


def _mean_per_token(forward: _Forward, batch_tokens: int) -> NDArray[np.float32]:
    forward.module.eval()
    rows = forward.rows
    batches = list(rows.length_batches(batch_tokens))
    sums = [forward.sums(positions) for positions in batches]
    sum_N = np.empty((len(rows), *sums[0].shape[1:]), dtype=np.float64)
    sum_N[np.concatenate(batches)] = np.concatenate(sums)
    count_N = rows.num_response_tokens_N.reshape(-1, *[1] * (sum_N.ndim - 1))
    return rounded(sum_N / count_N)


def rounded(loss: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return losses on the grid, on which sums of them are exact in float64."""
    return np.asarray(np.round(loss.astype(np.float64) / LOSS_GRID) * LOSS_GRID, dtype=np.float32)
