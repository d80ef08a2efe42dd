"""Engines: who computes a training step. Plain torch (DDP where there are several workers), or DeepSpeed.

An engine gets this worker's micro-batches and the number of response tokens of the *global* batch, and applies one
optimizer step on the mean loss per response token. Both clip gradients alike and compute the same losses.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from s2l_ray.errors import ArtifactError
from s2l_ray.filesystems import digest_of
from s2l_ray.losses import response_loss_module, to_tensors
from s2l_ray.token_rows import Batch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

STATE = "training_state.json"
TAG = "deepspeed"
SEAL = "checksums-"
"""Start of the name of a worker's list of checksums."""


@dataclass(frozen=True)
class EngineSettings:
    """What both engines need to know."""

    weight_decay: float
    gradient_clipping: float
    micro_batches: int
    micro_batch_size: int
    world_size: int
    bf16: bool


class Engine(Protocol):
    """Holds a model and its optimizer."""

    def train_step(self, batches: Sequence[Batch | None], global_tokens: int, learning_rate: float, seed: int) -> float:
        """Apply one step; return the sum of token losses of this worker [nats]. `seed` is for dropout."""

    def sum_over_workers(self, value: float) -> float:
        """Return the sum of a number over all workers."""

    def weights(self) -> dict[str, "torch.Tensor"] | None:
        """Return all weights on the CPU on rank 0, None elsewhere. Every worker must call it.

        They may share memory with the model: use them before the next step.
        """

    def save(self, folder: Path) -> None:
        """Write what is needed to go on from here. Every worker must call it with a folder of its own."""

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""


def _empty_batch() -> Batch:
    # Engines synchronise on every micro-batch, so a worker that has run out of rows computes one that counts nothing.
    return Batch(np.zeros((1, 2), np.int64), np.array([[False, True]]))


class TorchEngine:
    """AdamW in plain torch; DistributedDataParallel where there are several workers."""

    def __init__(self, model: "PreTrainedModel", settings: EngineSettings, device: "torch.device") -> None:
        import torch

        self._settings, self._device = settings, device
        self._model = model.to(device)
        self._module: torch.nn.Module = response_loss_module(self._model)
        if settings.world_size > 1:
            self._module = torch.nn.parallel.DistributedDataParallel(self._module)
        self._optimizer = adamw(self._model, settings)

    def train_step(self, batches: Sequence[Batch | None], global_tokens: int, learning_rate: float, seed: int) -> float:
        """See `Engine`."""
        import torch

        torch.manual_seed(seed)
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            # DDP averages over workers; the loss is a sum over all of them.
            scale = (self._settings.world_size if batch is not None else 0) / global_tokens
            synchronise = contextlib.nullcontext() if last or self._settings.world_size == 1 else self._module.no_sync()
            tensors = to_tensors(batch or _empty_batch(), self._device)
            with synchronise:
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.bf16):
                    loss = self._module(*tensors).sum()
                (loss * scale).backward()
            if batch is not None:
                total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.gradient_clipping)
        self._optimizer.step()
        return float(total)

    def sum_over_workers(self, value: float) -> float:
        """See `Engine`."""
        return _all_reduce(value, self._settings.world_size, self._device)

    def weights(self) -> dict[str, "torch.Tensor"] | None:
        """See `Engine`."""
        import torch.distributed as dist

        if self._settings.world_size > 1 and dist.get_rank() != 0:
            return None
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self._model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """See `Engine`; rank 0 alone writes, since all hold the same."""
        from safetensors.torch import save_file

        weights = self.weights()
        if weights is None:
            return
        frozen = _frozen(self._model)
        state: dict[str, Any] = {f"model.{n}": tensor.clone() for n, tensor in weights.items() if n not in frozen}
        for index, moments in self._optimizer.state_dict()["state"].items():
            state.update({f"optimizer.{index}.{name}": tensor.cpu() for name, tensor in moments.items()})
        save_file(state, folder / "training_state.safetensors")

    def load(self, folder: Path) -> None:
        """See `Engine`."""
        from safetensors.torch import load_file

        state = load_file(folder / "training_state.safetensors")
        weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        found = self._model.load_state_dict(weights, strict=False)
        if found.unexpected_keys or set(found.missing_keys) != _frozen(self._model):
            raise ArtifactError(f"{folder} is a checkpoint of another model. Start the run again.")
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = tensor
        full = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**full, "state": moments})


class DeepSpeedEngine:
    """AdamW under DeepSpeed's ZeRO stages 0 to 3."""

    def __init__(
        self, model: "PreTrainedModel", settings: EngineSettings, device: "torch.device", zero_stage: int
    ) -> None:
        deepspeed = import_deepspeed(device.type)
        self._settings, self._device, self._stage = settings, device, zero_stage
        self._model, optimizer = model, adamw(model, settings)
        self._engine, *_ = deepspeed.initialize(
            model=response_loss_module(model),
            optimizer=optimizer,
            dist_init_required=False,
            config=deepspeed_config(settings, zero_stage),
        )
        if zero_stage == 0 and settings.world_size == 1:
            # All gradients would be copied into a buffer, summed over a single worker, and copied back.
            self._engine.enable_backward_allreduce = False
        # In bf16 ZeRO 0 takes a step without gradients to allocate the moments; counted, it would shrink the next ones.
        for moments in optimizer.state.values():
            moments["step"].zero_()

    def train_step(self, batches: Sequence[Batch | None], global_tokens: int, learning_rate: float, seed: int) -> float:
        """See `Engine`."""
        import torch

        torch.manual_seed(seed)
        self._engine.train()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        # DeepSpeed averages over workers and micro-batches; the loss is a sum over all of them.
        factor = self._settings.world_size * self._settings.micro_batches / global_tokens
        for batch in batches:
            loss = self._engine(*to_tensors(batch or _empty_batch(), self._device)).sum()
            self._engine.backward(loss * (factor if batch is not None else 0.0))
            self._engine.step()
            if batch is not None:
                total += loss.detach()
        return float(total)

    def sum_over_workers(self, value: float) -> float:
        """See `Engine`."""
        return _all_reduce(value, self._settings.world_size, self._device)

    def weights(self) -> dict[str, "torch.Tensor"] | None:
        """See `Engine`; gathers the shards of ZeRO 3."""
        import torch.distributed as dist

        if self._stage == 3:
            gathered = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            gathered = self._engine.module.state_dict()
        if dist.is_initialized() and dist.get_rank() != 0:
            return None
        return {
            name.removeprefix("model."): tensor.detach().cpu().float().contiguous() for name, tensor in gathered.items()
        }

    def save(self, folder: Path) -> None:
        """See `Engine`; every rank writes its own shards."""
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """See `Engine`; under ZeRO 1 to 3 the number of workers must be the same as when it was saved.

        Raises:
            ArtifactError: no checkpoint, or one of another number of workers.
        """
        if not (folder / TAG).is_dir():
            raise ArtifactError(f"{folder} holds no DeepSpeed checkpoint. Start the run again.")
        shards, workers = len(list((folder / TAG).glob("*optim_states.pt"))), self._settings.world_size
        if self._stage > 0 and shards != workers:
            raise ArtifactError(
                f"the checkpoint was saved by {shards} workers, this run has {workers}; ZeRO {self._stage} cannot be "
                f"spread anew. Set `workers: {shards}` in its resources to go on from it."
            )
        self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not _frozen(self._model))


def set_determinism(is_wanted: bool) -> None:
    """Make torch refuse kernels whose result varies from run to run, or allow them again.

    cuBLAS needs its workspace fixed for it; FlashAttention's own kernels do not ask torch, but transformers tells them.
    """
    import torch

    if is_wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(is_wanted)


def adamw(model: "PreTrainedModel", settings: EngineSettings) -> "torch.optim.AdamW":
    """Return the optimizer that both engines use; the learning rate is set at every step."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Fused: each weight is read and written once, and no temporary of its size is allocated.
    return torch.optim.AdamW(trained, lr=0.0, weight_decay=settings.weight_decay, fused=True)


def _frozen(model: "PreTrainedModel") -> set[str]:
    """Return the names of the weights that training leaves alone: a checkpoint needs none of them."""
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad}


def deepspeed_config(settings: EngineSettings, zero_stage: int) -> dict[str, Any]:
    """Return DeepSpeed's own config."""
    # Summed in bf16, the gradients of many micro-batches shrink: 512 of them lose 3 %. ZeRO 0 knows no other way.
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if settings.bf16 and zero_stage > 0 else {}
    return {
        **sums,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.micro_batches,
        "gradient_clipping": settings.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero_stage, "stage3_gather_16bit_weights_on_model_save": zero_stage == 3},
        "bf16": {"enabled": settings.bf16},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # They wait for the GPU twice in every forward pass, to print what is never printed here.
        "timers": {"throughput": {"enabled": False}},
    }


def import_deepspeed(device_type: str) -> Any:
    """Import DeepSpeed without its compiler: on a CPU it would build a communication kernel at the first use."""
    import logging
    import warnings

    if device_type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that newer versions of torch announce the end of, at every step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device_type == "cpu":  # asked elsewhere, it would look for a compiler for each of its operators
        operators = getattr(deepspeed.ops, "__compatible_ops__", None)
        if isinstance(operators, dict):
            operators["deepspeed_shm_comm"] = False
    return deepspeed


def save_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """Write how far a run is, beside the engine's own files."""
    (folder / STATE).write_text(json.dumps(dict(progress)) + "\n", encoding="utf-8")


def load_progress(folder: Path) -> dict[str, Any]:
    """Read what `save_progress` wrote."""
    return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))


def seal(folder: Path, rank: int) -> None:
    """Write the checksums of what a worker has saved, itself among other workers' files later."""
    found = {str(path.relative_to(folder)): _checksum(path) for path in _files(folder)}
    (folder / f"{SEAL}{rank}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Return whether a checkpoint is what was saved: nothing in it may be opened before that is known."""
    listed: dict[str, str] = {}
    for path in folder.glob(f"{SEAL}*.json"):
        try:
            listed |= json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
    files = {str(path.relative_to(folder)): path for path in _files(folder)}
    return files.keys() == listed.keys() and all(_checksum(path) == listed[name] for name, path in files.items())


def _files(folder: Path) -> list[Path]:
    # Ray Train keeps notes of its own in a checkpoint, in hidden files.
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith((SEAL, "."))]


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return digest_of(stream)[1]


def _all_reduce(value: float, world_size: int, device: "torch.device") -> float:
    if world_size == 1:
        return value
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor)
