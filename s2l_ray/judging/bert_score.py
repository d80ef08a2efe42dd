"""BERTScore: how near a text comes to its reference by an encoder's hidden states, token by token.

Every token of one text is matched with the most similar token of the other, by the cosine of their hidden states.
Recall is the mean over the reference's tokens, precision over the answer's, and the score is their F1. As in the
package bert-score, special tokens may be matched but are not counted, tokens weigh alike (no idf), and the figure is
not rescaled by a baseline: it is comparable within one encoder and layer only.

Source: Zhang et al. 2020 (arXiv 1904.09675).
Shape suffixes: A tokens of the answer, R tokens of the reference, L padded tokens, D dimensions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from s2l_ray.config import EncoderConfig
from s2l_ray.errors import ConfigError
from s2l_ray.pretrained import pretrained_folder

if TYPE_CHECKING:
    import torch

JUDGE = "bert-score-1"
KEY = "evaluate.encoder"
BATCH_TOKENS = 8192
"""Padded tokens per forward pass of the encoder."""
PAIRS = 64
"""Texts that are compared at once: their states are held together."""

PREFIX_SPACE = ("GPT2", "Roberta", "Longformer")
"""Tokenizers to which a word at the start is another word than the same inside a text."""


@dataclass(frozen=True)
class Embedded:
    """A text's hidden states, each of length 1, and which tokens count."""

    state_LD: "torch.Tensor"
    is_counted_L: "torch.Tensor"


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder on a device, and the layer whose states are compared."""

    model: Any
    tokenizer: Any
    layer: int
    """Place among the hidden states, of which the first are the embeddings."""
    limit: int
    """Longest text [tokens]; what is longer is cut."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the F1 of every (reference, answer); 0 where one of them is empty."""
        found: list[float] = []
        for start in range(0, len(pairs), PAIRS):
            some = [(reference.strip(), answer.strip()) for reference, answer in pairs[start : start + PAIRS]]
            embedded = self._embedded(list(dict.fromkeys(text for pair in some for text in pair)))
            found += [f1(embedded[reference], embedded[answer]) for reference, answer in some]
        return found

    def _embedded(self, texts: Sequence[str]) -> dict[str, Embedded]:
        import torch

        space = " " if type(self.tokenizer).__name__.startswith(PREFIX_SPACE) else ""
        cut = {"truncation": True, "max_length": self.limit}
        given = [self.tokenizer(space + text, return_special_tokens_mask=True, **cut) for text in texts]
        by_length = sorted(range(len(texts)), key=lambda n: len(given[n]["input_ids"]))
        found: dict[str, Embedded] = {}
        while by_length:
            longest = len(given[by_length[-1]]["input_ids"])
            batch = by_length[-max(1, BATCH_TOKENS // longest) :]
            del by_length[-len(batch) :]
            state_BLD = self._states([given[n]["input_ids"] for n in batch])
            for state_LD, n in zip(state_BLD, batch, strict=True):
                counted_L = torch.tensor(given[n]["special_tokens_mask"], device=state_LD.device) == 0
                found[texts[n]] = Embedded(state_LD[: len(counted_L)], counted_L)
        return found

    def _states(self, ids: Sequence[Sequence[int]]) -> "torch.Tensor":
        import torch
        from torch.nn.functional import normalize

        longest = max(len(row) for row in ids)
        pad = self.tokenizer.pad_token_id or 0
        device = self.model.device
        input_ids_BL = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids], device=device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        with torch.inference_mode():
            output = self.model(input_ids=input_ids_BL, attention_mask=mask_BL, output_hidden_states=True)
        return normalize(output.hidden_states[self.layer].float(), dim=-1)


def f1(reference: Embedded, answer: Embedded) -> float:
    """Return the score of two embedded texts; 0 where one has no token that counts."""
    if not bool(reference.is_counted_L.any()) or not bool(answer.is_counted_L.any()):
        return 0.0
    similar_RA = reference.state_LD @ answer.state_LD.T
    recall = float(similar_RA.max(dim=1).values[reference.is_counted_L].mean())
    precision = float(similar_RA.max(dim=0).values[answer.is_counted_L].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def check_encoder(config: EncoderConfig) -> None:
    """Refuse an encoder that is not to be had, or has no such layer; its weights are not loaded.

    Raises:
        ConfigError: with what was found.
    """
    folder = pretrained_folder(config, KEY)
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("num_hidden_layers")
    if config.layer is not None and isinstance(layers, int) and config.layer > layers:
        raise ConfigError(f"{KEY}.layer is {config.layer}, but {config.model} has {layers}. Lower it, or leave it out.")


@lru_cache(maxsize=1)
def load_encoder(config: EncoderConfig, device: str) -> Encoder:
    """Load the encoder of the config, in float32.

    Raises:
        ConfigError: it does not load.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = pretrained_folder(config, KEY)
    try:
        code = {"trust_remote_code": config.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(folder, **code)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **code)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"{KEY}.model: {folder} does not load as an encoder with its tokenizer: "
            f"{str(error).strip().partition(chr(10))[0][:300]}"
        ) from error
    limit, positions = tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa counts its positions from the one after the padding's.
        limit = min(limit, positions - 2 if "roberta" in model.config.model_type else positions)
    return Encoder(model.eval().to(device), tokenizer, -1 if config.layer is None else config.layer, limit)
