"""A short probe: how fast one worker is with every model of a plan, on the processors that its stage asks for.

Each model is built as its stage would build it and given some of the real rows for a few seconds. Nothing is kept.
"""

import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray

from s2l_ray.artifacts import Artifact
from s2l_ray.computation import recompute_activations, set_attention
from s2l_ray.config import FreshModel, LoraConfig, PoolResources, ResourcesConfig, TargetConfig, TrainResources
from s2l_ray.engines import EngineSettings, TorchEngine
from s2l_ray.errors import S2LError, decode_error, encode_error
from s2l_ray.estimates import MODEL_STAGES, Estimate, Pace, Task, estimates, state_bytes, task_of
from s2l_ray.graph import Node, Pipeline
from s2l_ray.log import display
from s2l_ray.losses import mean_losses, response_loss_module
from s2l_ray.models import device_and_precision, fresh_config
from s2l_ray.pretrained import pretrained_folder
from s2l_ray.stages.capacity import at_once, one_shot_on_gpu, remote_options, wait_for
from s2l_ray.stages.runtime import limit_threads
from s2l_ray.stages.train_worker import build_trainable
from s2l_ray.token_rows import TokenRows
from s2l_ray.training import BatchOrder, Share

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SECONDS = 6.0
"""How long a model is timed."""
MOST_ROWS = 512
"""Rows that are read, at most, by a model that is not trained."""
WARM_ROWS = 8


@dataclass(frozen=True)
class Probe:
    """One model to be timed. Cheap to pickle."""

    task: Task
    tokens: Artifact
    tokenizer: Artifact
    max_tokens: int
    batch_tokens: int
    precision: str
    seconds: float
    """How long it is timed, about, once it is warm."""

    @property
    def lora(self) -> LoraConfig | None:
        """The adapter that is trained, if one is."""
        return self.task.model.lora if isinstance(self.task.model, TargetConfig) else None


def probe(
    pipeline: Pipeline,
    missing: Iterable[Node],
    artifacts: Mapping[str, Artifact],
    resources: ResourcesConfig,
    seconds: float = SECONDS,
) -> list[Estimate]:
    """Time the models of the nodes that are to be made; Ray is connected.

    Args:
        missing: the nodes.
        artifacts: node key -> artifact, of the tokens and tokenizers among others.
        seconds: how long each model is timed, about.

    Raises:
        S2LError: a model cannot be built, or the cluster does not bring what its stage asks for.
    """
    probes: dict[str, Probe] = {}
    for node in missing:
        if node.stage in MODEL_STAGES:
            probes[pipeline.label(node)] = _probe_of(node, artifacts, resources, seconds)
    paces: dict[str, Pace] = {}
    known: dict[str, Pace] = {}
    with display.progress("probe", len(probes), "models") as progress:
        for done, (label, each) in enumerate(probes.items()):
            alike = _identity(each)
            if alike not in known:
                known[alike] = _measured_on_cluster(each, label, resources)
            paces[label] = known[alike]
            progress.update(done + 1)
    return list(estimates({label: each.task for label, each in probes.items()}, paces))


def _probe_of(node: Node, artifacts: Mapping[str, Artifact], resources: ResourcesConfig, seconds: float) -> Probe:
    demand = resources.of(node.stage)
    assert demand is not None
    tokens, tokenizer = (artifacts[node.inputs[name].key] for name in ("tokens", "tokenizer"))
    workers = demand.count
    if isinstance(demand, PoolResources):
        there = at_once(demand.model_copy(update={"actors": (1, 1)}))
        workers = max(demand.count, int(min(demand.actors[1], there)))
    task = task_of(node, tokens, demand, workers)
    trainer = node if task.trains else node.inputs["proxy"]
    scoring = None if task.trains else node.config
    return Probe(
        task=task,
        tokens=tokens,
        tokenizer=tokenizer,
        max_tokens=trainer.config.max_tokens,
        batch_tokens=0 if scoring is None else scoring.batch_tokens,
        precision=task.model.precision if scoring is None else scoring.precision,
        seconds=seconds,
    )


def _identity(each: Probe) -> str:
    """Return what is equal for models that are as fast as one another, however long and from which seed they train."""
    fields = {"model", "revision", "micro_batch_size", "global_batch_size", "attention", "lora"}
    named = each.task.model.model_dump_json(include=fields)
    return f"{each.task.trains} {each.tokens.uri} {each.task.demand!r} {each.precision} {each.batch_tokens} {named}"


def _measured_on_cluster(each: Probe, label: str, resources: ResourcesConfig) -> Pace:
    demand = each.task.demand
    alone = {"workers": 1} if isinstance(demand, TrainResources) else {"actors": (1, 1)}
    wait_for(demand.model_copy(update=alone), f"probe {label}", resources.wait_seconds)
    function = one_shot_on_gpu(_measured_in_task, demand.gpus)
    task = function.options(name=f"probe {label}", **remote_options(demand), max_retries=1)
    found: Pace | dict[str, object] = ray.get(task.remote(each))
    if isinstance(found, Pace):
        return found
    raise decode_error(found)


def _measured_in_task(each: Probe) -> "Pace | dict[str, object]":
    limit_threads(each.task.demand.threads)
    try:
        return measured(each)
    except S2LError as error:
        return encode_error(error)


def measured(each: Probe) -> Pace:
    """Time a model in this process.

    Raises:
        S2LError: it cannot be built.
    """
    import torch

    task = each.task
    device, bf16 = device_and_precision(each.precision, task.demand.gpus)
    parameters = _count_parameters(each)
    unmeasured = Pace(parameters, 0 if each.lora else parameters, None, None)
    if state_bytes(task, unmeasured) > _free_bytes(device):
        return unmeasured
    model = build_trainable(
        task.model, each.lora, key=task.key, tokenizer=each.tokenizer, max_tokens=each.max_tokens, seed=0
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rows = TokenRows.from_table(each.tokens.read_table("tokens-", list(TokenRows.COLUMNS)))
    try:
        work = _training if task.trains else _reading
        rate = work(each, model, rows, device, bf16)
    except (torch.OutOfMemoryError, MemoryError):
        return Pace(parameters, trained, None, None)
    on_gpu = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Pace(parameters, trained, rate, memory)


def _count_parameters(each: Probe) -> int:
    """Count them without a byte of their memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config, code = each.task.model, {"trust_remote_code": each.task.model.trust_remote_code}
    summary = each.tokenizer.summary
    if isinstance(config.model, FreshModel):
        sizes = {"vocab_size": summary["vocab_size"], "max_tokens": each.max_tokens, "eos_id": summary["eos_id"]}
        described = fresh_config(config.model, **sizes)
    else:
        described = AutoConfig.from_pretrained(pretrained_folder(config, each.task.key), **code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, **code)
    return sum(parameter.numel() for parameter in model.parameters())


def _free_bytes(device: "torch.device") -> int:
    import psutil
    import torch

    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _training(each: Probe, model: "PreTrainedModel", rows: TokenRows, device: "torch.device", bf16: bool) -> float:
    """Return tokens per second of training steps, each of some of a global batch's forward passes."""
    config, demand = each.task.model, each.task.demand
    assert isinstance(demand, TrainResources)
    if demand.gradient_checkpointing:
        recompute_activations(model)
    settings = EngineSettings(config.weight_decay, config.gradient_clipping, 1, config.micro_batch_size, 1, bf16)
    engine = TorchEngine(model, settings, device)
    set_attention(model, config.attention, in_bf16=bf16 and device.type == "cuda")
    batch = config.global_batch_size
    order = BatchOrder(len(rows), batch, len(rows) * batch, seed=0)
    share = Share(0, each.task.workers, config.micro_batch_size, batch)
    pad_id, length_N = each.tokenizer.summary["pad_id"], rows.length_N
    step = 0

    def cuts() -> list[np.ndarray]:
        positions = order.global_batch(step)
        return [cut for cut in share.cut(positions[np.argsort(-length_N[positions], kind="stable")]) if len(cut)]

    def train(chosen: list[np.ndarray]) -> int:
        response = int(sum(rows.num_response_tokens_N[cut].sum() for cut in chosen))
        engine.train_step([rows.batch(cut, pad_id) for cut in chosen], response, config.learning_rate, step)
        return int(sum(length_N[cut].sum() for cut in chosen))

    step = 1
    train(cuts()[:1])  # the largest: what memory it takes is known at once
    seconds = _timed(lambda: train(cuts()[:1]), device)[1]
    several = max(1, int(each.seconds / 2 / seconds))

    def next_step() -> int:
        nonlocal step
        step += 1
        found = cuts()
        return train(found[:: -(-len(found) // several)])

    return _rate(next_step, device, each.seconds)


def _reading(each: Probe, model: "PreTrainedModel", rows: TokenRows, device: "torch.device", bf16: bool) -> float:
    """Return tokens per second of forward passes."""
    module, pad_id = response_loss_module(model.to(device).eval()), each.tokenizer.summary["pad_id"]
    # Afterwards: the module tries the model's head in fp32, in which FlashAttention does not compute.
    set_attention(model, each.task.model.attention, in_bf16=bf16 and device.type == "cuda")
    shuffled = np.random.default_rng(0).permutation(rows.example_id_N)

    def read(count: int) -> int:
        some = rows.take(np.sort(shuffled[:count]))
        mean_losses(module, some, batch_tokens=each.batch_tokens, pad_id=pad_id, device=device, bf16=bf16)
        return int(some.length_N.sum())

    read(WARM_ROWS)
    seconds = _timed(lambda: read(WARM_ROWS), device)[1]
    count = min(MOST_ROWS, max(WARM_ROWS, int(WARM_ROWS * each.seconds / seconds)))
    return _rate(lambda: read(count), device, each.seconds)


def _rate(work: Callable[[], int], device: "torch.device", seconds: float) -> float:
    tokens, spent = 0, 0.0
    while spent < seconds:
        done, took = _timed(work, device)
        tokens, spent = tokens + done, spent + took
    return tokens / spent


def _timed(work: Callable[[], int], device: "torch.device") -> tuple[int, float]:
    import torch

    started = time.perf_counter()
    done = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return done, time.perf_counter() - started
