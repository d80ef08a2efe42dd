"""Models, rows, configs and artifacts of a size that tests can afford."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts import Artifact
from s2l_ray.attempts import begin
from s2l_ray.config import Config
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment, experiment_of, parse_sparse
from s2l_ray.staged_output import StagedOutput
from s2l_ray.storage import Storage
from s2l_ray.strict_yaml import parse_yaml
from s2l_ray.token_rows import TokenRows
from s2l_ray.tokens import TokenizedExample, tokens_table

VOCAB, MAX_TOKENS = 40, 32
FINGERPRINT = "0" * 32
EXAMPLE_IDS = pa.schema([pa.field("example_id", pa.int64())])
SYNTHETIC = "examples: {synthetic: {}}\n"


def model(model_type="gpt_neox", seed=0, scale=1.0, **changes):
    """A random model; `scale` enlarges its weights, so that losses and gradients are not all alike."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": None,
            **changes,
        },
    )
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return built


def encoder(folder, words):
    """Save a BERT of two layers with random weights and 16 positions, and a tokenizer of words; return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


def rows_of(examples):
    """(ids, spans) of each example -> TokenRows with the ids 0, 1, ..."""
    tokenized = [
        TokenizedExample(list(ids), [a for a, _ in spans], [b for _, b in spans], truncated=False)
        for ids, spans in examples
    ]
    return TokenRows.from_table(tokens_table(range(len(examples)), [None] * len(examples), tokenized))


def rows(n, seed=0, longest=MAX_TOKENS):
    """Random examples of 2 to `longest` tokens, some with two responses."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(n):
        length = int(rng.integers(2, longest + 1))
        start = int(rng.integers(1, length))
        spans = [(start, length)]
        if length - start >= 4:
            spans = [(start, start + 1), (start + 3, length)]
        examples.append((rng.integers(2, VOCAB, length).tolist(), spans))
    return rows_of(examples)


def parse(text: str, *sets: str) -> Experiment:
    return experiment_of(parse_sparse(parse_yaml(text, origin="exp.yaml"), list(sets), origin="exp.yaml", name="exp"))


def config_of(text: str = "", *sets: str) -> Config:
    return parse(SYNTHETIC + text, *sets).shared


def refusal(text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, *sets)
    assert caught.value.exit_code == 2
    return str(caught.value)


def begun(storage: Storage, artifact: str = "clusters", fingerprint: str = FINGERPRINT) -> StagedOutput:
    output = begin(storage, artifact, fingerprint)
    assert output is not None
    return output


def commit(output: StagedOutput, records=None, **changes) -> Artifact:
    arguments = {"config": {"k": 1}, "inputs": {"tokens": "d"}, "summary": {"rows": 3}, "run": {"seconds": 1.0}}
    if records is None:
        records = [output.write_bytes("a.txt", b"hello")]
    return output.commit(records, **(arguments | changes))
