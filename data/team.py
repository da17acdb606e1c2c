"""
Several processes live one life: torchrun --nproc_per_node=4 sleep.py. Skip it at first.

As in nanoGPT, every process holds the whole model and draws its own batch (`run.stage(own=True)`),
and the one function that steps averages the gradients, so all take the same step. What must be
the same for all, like the dreams of a night, the first process writes and sends to the others.
"""
import os
import sys
import traceback
from functools import partial

import torch
import torch.distributed as dist

RANK, SIZE = 0, 1                   # which of the team this process is; `start` finds out


def start():
    """Join the team that torchrun has launched, if it has. CPU tensors go by gloo, others by nccl.

    The first process alone prints and writes: of the others only an error of ours is heard.
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
        sys.excepthook = partial(traceback.print_exception, file=sys.__stderr__)


def end():
    """Leave the team when the life is over."""
    if SIZE > 1:
        dist.destroy_process_group()


@torch.no_grad()
def average_gradients(params):
    """Every p.grad becomes its mean over the team, the same bits everywhere; all are sent as one.

    A parameter that a process has not used counts as zeros there; unused by all, it stays None.
    """
    params = list(params)
    if SIZE == 1 or not params:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    used = torch.tensor([p.grad is not None for p in params]).to(grads[0])
    flat = torch.cat([used, *(g.flatten() for g in grads)])
    dist.all_reduce(flat)
    used, *means = (flat / SIZE).split([len(params), *(p.numel() for p in params)])
    for p, seen, mean in zip(params, used.tolist(), means):
        p.grad = mean.view_as(p).to(p) if seen else None


def share(thing):
    """What the first process holds (words, numbers, lists, CPU tensors), for everyone."""
    parcel = [thing]
    if SIZE > 1:
        dist.broadcast_object_list(parcel)
    return parcel[0]


def anyone(flag):
    """True for all if it is true for one: the team agrees before it stops. Nobody runs ahead."""
    if SIZE == 1:
        return bool(flag)
    seen = torch.tensor(int(bool(flag)))
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen)


def broken(e):
    """Is this error only the silence of another process, which has its own to tell?"""
    return SIZE > 1 and (isinstance(e, dist.DistError) or "Connection" in str(e))
