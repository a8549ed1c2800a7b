"""Document rows of all processes, with gradients: in-batch negatives are global."""

from __future__ import annotations

import atexit
import functools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "barrier",
    "broadcast",
    "gather",
    "gather_rows",
    "leave_at_exit",
    "mean",
    "processes",
    "rank",
]


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one."""
    return dist.get_rank() if processes() > 1 else 0


@functools.cache
def leave_at_exit() -> None:
    """Let this process leave the group before it ends: threads of a group that is still there when
    C++ destroys what is static abort the process now and then."""
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the other processes."""
    if processes() > 1:
        dist.barrier()


@functools.cache
def _patient_group() -> Any:
    """All processes, in a group that waits for as long as an evaluation may take.

    The usual half hour stays the limit of a step, where a longer wait means that one has died.
    """
    return dist.new_group(timeout=timedelta(days=1))


def broadcast(value: Any) -> Any:
    """Process 0's value, which can be pickled, in every process; up to a day is waited for it."""
    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_patient_group())
    return box[0]


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; a row's gradient is the sum of what they all ask of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.start, ctx.size = sum(sizes[: rank()]), len(rows)
        padded = rows.new_zeros((max(sizes), rows.shape[1]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # A copy: autograd's tensors are not to be written.
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.size], None


def gather(values: Tensor) -> Tensor:
    """Values of all processes, as many of each, those of process 0 first."""
    if processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(parts, values)
    return torch.cat(parts)


def mean(values: Tensor) -> Tensor:
    """The mean over processes."""
    return gather(values[None]).mean(0)


def gather_rows(rows: Tensor, doclens: Tensor) -> tuple[Tensor, Tensor]:
    """Documents of all processes, those of process 0 first.

    Each process scores its own queries against all of them. Gradients are summed over processes in
    backward, so the sum of the processes' losses is what every parameter gets the gradient of; DDP
    divides it by their number, which makes it the mean.

    Parameters
    ----------
    rows : (n_tokens, dim), any number in each process
    doclens : int32 (n_docs,), as many in each process

    Returns
    -------
    rows : (all tokens, dim)
    doclens : int32 (processes * n_docs,)
    """
    if processes() == 1:
        return rows, doclens
    everywhere = gather(doclens)
    sizes = everywhere.view(processes(), -1).sum(1).tolist()
    everything: Tensor = _GatherRows.apply(rows, sizes)  # type: ignore[no-untyped-call]
    return everything, everywhere
