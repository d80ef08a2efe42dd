"""The gradient of every example's loss, exact for small models and as a count sketch for larger ones.

What S2L claims is about gradients: rows with like trajectories have like gradients. This is where the gradients come
from; `diagnostics.gradient_similarity` compares them.

Shape suffixes: M examples, D dims of what is returned (parameters, or buckets of the sketch).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.losses import response_loss_module, to_tensors
from s2l_ray.token_rows import TokenRows

if TYPE_CHECKING:
    import torch

EXACT_PARAMETERS = 1_000_000
"""Models with at most this many trainable parameters have their gradients written out in full."""
EXACT_BYTES = 2**30
"""Unless the gradients of all examples together are larger than this [bytes]."""
SKETCH_BYTES = 2**30
"""The sketch's random numbers are kept from example to example up to this size [bytes], 4 per parameter."""
SKETCH_DIMS = 16_384
SKETCH_CHUNK = 2**22
"""Coordinates whose slots are drawn at once."""


def example_gradients(
    model: "torch.nn.Module",
    rows: TokenRows,
    *,
    pad_id: int,
    device: "torch.device",
    sketch_dims: int = SKETCH_DIMS,
    seed: int = 0,
    on_row: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float32], bool]:
    """Return the gradient of every example's mean loss per response token, in all trainable parameters.

    One backward pass per example, without dropout. The parameters' own `.grad` and the mode of the model stay as
    they are; the model is moved to `device`. Where the model has more than EXACT_PARAMETERS parameters, or all
    gradients together are above EXACT_BYTES, each is a count sketch: every coordinate is added to or subtracted from
    one of `sketch_dims` random buckets. Inner products of sketches are unbiased; those of unit vectors have a
    standard error of at most sqrt((1 + cosine^2) / D), about 1 / sqrt(D).

    Args:
        model: a causal language model; gradients are computed in its dtype and added up in float32.
        rows: M examples.
        pad_id: the token id to pad with.
        device: where to compute. On a GPU the last bits may vary from call to call.
        sketch_dims: buckets D of the sketch.
        seed: of the sketch; the same seed and model give the same buckets on any device.
        on_row: called with the position of every row that is done.

    Returns:
        float32 [M, D] [nats/token per unit of a parameter], D being the number of parameters or `sketch_dims`; and
        whether it is exact.

    Raises:
        ConfigError: the model has no trainable parameter, or `sketch_dims` is below 1.
        DataError: a gradient that is NaN or infinite.
        MemoryError: a single example does not fit.

    Source:
        Charikar, Chen and Farach-Colton 2002, Finding frequent items in data streams; Weinberger et al. 2009, for
        inner products.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    n_parameters = sum(p.numel() for p in parameters)
    if n_parameters == 0 or sketch_dims < 1:
        raise ConfigError(
            f"found {n_parameters} trainable parameters and a sketch of {sketch_dims} dims; expected 1 or more of both."
        )
    exact = n_parameters <= EXACT_PARAMETERS and len(rows) * n_parameters * 4 <= EXACT_BYTES
    gradient_MD = np.empty((len(rows), n_parameters if exact else sketch_dims), dtype=np.float32)
    was_training = model.training
    module = response_loss_module(model.to(device)).eval()
    flatten = _in_full if exact else _CountSketch([p.numel() for p in parameters], sketch_dims, seed, device)
    try:
        for position in range(len(rows)):
            gradient_MD[position] = flatten(_gradient(module, parameters, rows, position, pad_id, device))
            _check_finite(gradient_MD[position], int(rows.example_id_N[position]))
            if on_row is not None:
                on_row(position)
    finally:
        model.train(was_training)
    return gradient_MD, exact


def _gradient(
    module: "torch.nn.Module",
    parameters: Sequence["torch.nn.Parameter"],
    rows: TokenRows,
    position: int,
    pad_id: int,
    device: "torch.device",
) -> list["torch.Tensor"]:
    """Return the gradient of one example, one flat float32 tensor per parameter; zeros where it plays no part."""
    import torch

    try:
        with torch.enable_grad():
            loss = module(*to_tensors(rows.batch([position], pad_id), device)).sum()
            mean = loss / max(1, int(rows.num_response_tokens_N[position]))
            parts = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise MemoryError(int(rows.example_id_N[position])) from None
    return [part.reshape(-1).float() for part in parts]


def _check_finite(gradient_D: NDArray[np.float32], example_id: int) -> None:
    if not np.isfinite(gradient_D).all():
        raise DataError(
            f"the gradient of example {example_id} is NaN or infinite; expected finite numbers. Use a checkpoint from "
            "before the proxy diverged, or load the model in fp32.",
            example_ids=[example_id],
        )


def _in_full(parts: list["torch.Tensor"]) -> NDArray[np.float32]:
    import torch

    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float32)


class _CountSketch:
    """A bucket and a sign for every coordinate, drawn per parameter from a seed.

    One number of 0..2D-1 is both: the coordinate is added to that slot, and the sketch is the first half of the slots
    minus the second. It is drawn where the gradient is: a generator of random numbers on a CPU would take minutes for
    the billions of weights whose gradient a GPU has in less than a second.
    """

    def __init__(self, sizes: Sequence[int], dims: int, seed: int, device: "torch.device") -> None:
        self._dims, self._device = dims, device
        seeds = [np.random.SeedSequence([seed % 2**64, index]) for index in range(len(sizes))]
        self._salts = [int(each.generate_state(1, np.uint64).view(np.int64)[0]) for each in seeds]
        self._kept: dict[tuple[int, int], torch.Tensor] | None = {} if 4 * sum(sizes) <= SKETCH_BYTES else None

    def _slots(self, index: int, start: int, stop: int) -> "torch.Tensor":
        """Return the slots of some coordinates of a parameter: the finaliser of SplitMix64, as in `draws`."""
        import torch

        if self._kept is not None and (index, start) in self._kept:
            return self._kept[index, start]
        # Whole numbers of 64 bits wrap around in the same way on every device.
        state = torch.arange(start, stop, device=self._device) * _GOLDEN + self._salts[index]
        state = (state ^ _shifted(state, 30)) * _MIX_1
        state = (state ^ _shifted(state, 27)) * _MIX_2
        slots = (_shifted(state ^ _shifted(state, 31), 33) % (2 * self._dims)).to(torch.int32)
        if self._kept is not None:
            self._kept[index, start] = slots
        return slots

    def __call__(self, parts: list["torch.Tensor"]) -> NDArray[np.float32]:
        import torch

        total = torch.zeros(2 * self._dims, device=self._device)
        for index, part in enumerate(parts):
            for start in range(0, len(part), SKETCH_CHUNK):
                piece = part[start : start + SKETCH_CHUNK]
                total.index_add_(0, self._slots(index, start, start + len(piece)), piece)
        return np.asarray((total[: self._dims] - total[self._dims :]).cpu().numpy(), dtype=np.float32)


_GOLDEN, _MIX_1, _MIX_2 = (
    value - 2**64 for value in (0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB)
)


def _shifted(state: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Shift to the right as if the numbers had no sign."""
    return (state >> bits) & (2 ** (64 - bits) - 1)
