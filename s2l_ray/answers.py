"""Answers: greedy generation, and whether what came out is what was expected.

Legend: B batch, L tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s2l_ray.token_rows import TokenRows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def prompts_and_answers(rows: TokenRows) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """Cut every example before its last response: what a model is given, and what it should say."""
    prompts, answers = [], []
    for n in range(len(rows)):
        ids = rows.token[rows.token_offset[n] : rows.token_offset[n + 1]]
        start, stop = rows.span[rows.span_offset[n + 1] - 1]
        prompts.append(ids[:start])
        answers.append(ids[start:stop])
    return prompts, answers


def generate_greedily(
    model: "PreTrainedModel",
    prompts: Sequence[NDArray[np.int32]],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    stop_ids: Sequence[int],
    device: "torch.device",
    is_ended: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Return the most likely continuation of every prompt, up to the first of `stop_ids`, which is left out.

    Where `is_ended` is given, the continuation need not go on once it says so of the tokens so far; it may.
    Prompts of equal length share a batch, so that nothing is padded and no mask is needed. Dropout is off: the model
    is put into evaluation mode.
    """
    import torch

    model.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    limit = getattr(model.config, "max_position_embeddings", None)
    with torch.inference_mode():
        for positions in _equal_length_batches([len(p) for p in prompts], batch_tokens, max_new_tokens):
            room = room_for_answer(len(prompts[positions[0]]), max_new_tokens, limit)
            if room < 1:
                continue
            input_ids_BL = torch.from_numpy(np.stack([prompts[p] for p in positions]).astype(np.int64)).to(device)
            for position, ids in zip(positions, _greedy(model, input_ids_BL, room, stop_ids, is_ended), strict=True):
                answers[position] = ids
    return answers


def _greedy(
    model: "PreTrainedModel",
    input_ids_BL: "torch.Tensor",
    room: int,
    stop_ids: Sequence[int],
    is_ended: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    import torch

    # As transformers calls it of late, and as code that comes with a model may go on calling it.
    cached = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache, fed, new, open_B = None, input_ids_BL, [], None
    stops = torch.tensor(list(stop_ids), device=input_ids_BL.device)
    for _ in range(room):
        output = model(input_ids=fed, **{cached: cache}, use_cache=True, logits_to_keep=1)
        cache = getattr(output, cached)
        token_B = output.logits[:, -1].argmax(dim=-1)
        new.append(token_B)
        ended_B = torch.isin(token_B, stops)
        if is_ended is not None:
            ended_B |= torch.tensor([is_ended(ids) for ids in torch.stack(new, dim=1).tolist()], device=ended_B.device)
        open_B = ~ended_B if open_B is None else open_B & ~ended_B
        if not bool(open_B.any()):
            break
        fed = token_B[:, None]
    rows = torch.stack(new, dim=1).tolist()
    return [before_stop_id(row, stop_ids) for row in rows]


def _equal_length_batches(lengths: Sequence[int], batch_tokens: int, new_tokens: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batch: list[int] = []
    for position in order:
        full = batch and len(batch) * (lengths[batch[0]] + new_tokens) >= batch_tokens
        if batch and (full or lengths[position] != lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def room_for_answer(length: int, max_new_tokens: int, limit: int | None) -> int:
    """Return how many tokens may follow a prompt of `length`; `limit` is the longest text that the model reads."""
    return max_new_tokens if limit is None else min(max_new_tokens, limit - length)


def before_stop_id(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return token ids up to the first of `stop_ids`, which is left out."""
    return list(takewhile(lambda token: token not in stop_ids, ids))


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of some strings, which is left out."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def is_exact_match(prediction: str, expected: str) -> bool:
    """Return whether two texts are equal but for white space."""
    return prediction.split() == expected.split()
