"""
Several processes live one life (data parallelism). Skip it at first, and read every `team.` as if it were not there.

    torchrun --nproc_per_node=4 sleep.py               every flag as before

Every process holds the whole model, draws the same random numbers and builds the same batch. Then each goes on with its own
rows, and what a life needs of the others is summed or collected: so N processes live the life of one, but for the rounding
of sums. One process is a team of one: `mine` is all, `total` and `gather` hand back what they were given, nothing is sent.

    loss of the whole = total of  sum over my rows / number in all rows,     so is its gradient
"""
import os
import sys
import traceback

import torch
import torch.distributed as dist

RANK, SIZE = 0, 1                   # which of the team this process is; `start` finds out


def start():
    """Join the team that torchrun has launched, if it has. Numbers on the CPU go through gloo, those on a GPU through nccl.

    The first process alone prints and writes: what the others print is gone, but for the traceback of a mistake of ours.
    """
    global RANK, SIZE
    if SIZE > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    gpus = torch.cuda.device_count()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    RANK, SIZE = dist.get_rank(), dist.get_world_size()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    if RANK:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        sys.excepthook = lambda *e: traceback.print_exception(*e, file=sys.__stderr__)


def end():
    """Leave the team when the life is over."""
    if SIZE > 1:
        dist.destroy_process_group()


def mine():
    """Of any rows, those of this process: every SIZE-th, so that neighbours (often equally long) are shared evenly."""
    return slice(RANK, None, SIZE)


@torch.no_grad()
def total(t):
    """The sum of a tensor over the team, the same bits everywhere."""
    if SIZE > 1:
        t = t.detach().clone()
        dist.all_reduce(t)
    return t


def sum_gradients(params):
    """From the gradients of everyone's part of a loss that of the whole, in every p.grad. They are sent as one."""
    params = [p for p in params if p.grad is not None]
    if SIZE > 1:
        flat = total(torch.cat([p.grad.flatten() for p in params]))
        for p, part in zip(params, flat.split([p.numel() for p in params])):
            p.grad = part.view_as(p)


def gather(rows, n=None):
    """The whole from everyone's own rows, in order: a list, or (with n, their number) a tensor (n, ...)."""
    if SIZE == 1:
        return rows
    if n is not None:
        whole = rows.new_zeros(n, *rows.shape[1:])
        whole[mine()] = rows.detach()
        return total(whole)
    parts = [None] * SIZE
    dist.all_gather_object(parts, rows)
    whole = [None] * sum(map(len, parts))
    for i, part in enumerate(parts):
        whole[i::SIZE] = part
    return whole


def anyone(flag):
    """True for all if it is true for one: the team agrees before it stops."""
    if SIZE == 1:
        return bool(flag)
    seen = torch.tensor(int(bool(flag)))
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen)


def broken(e):
    """Is this error only the silence of another process, which has its own to tell?"""
    return SIZE > 1 and isinstance(e, RuntimeError) and ("Connection" in str(e) or isinstance(e, dist.DistError))
