"""Memory for weights, in large pages where the system has them: reading a matrix once a token, a processor would look
up an address every 4096 bytes."""

import ctypes
import functools
import math
import threading
from typing import Any

import torch
from torch import Tensor

PAGE = 2**21  # bytes of a large page
ROOM = 2**24  # bytes asked for at once; what is not written to takes no memory
LARGE, LINE = 14, 64  # madvise's MADV_HUGEPAGE; bytes of a cache's line

_alone = threading.Lock()
_addresses: set[int] = set()  # of all rooms there ever were
_left: list[Tensor] = []  # what is left of the last room


def settled(x: Tensor) -> Tensor:
    """A copy of x, contiguous, next to others of its kind; it must not be resized."""
    nbytes = x.nbytes
    with _alone, torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be trained with
        if not _left or _left[0].nbytes < nbytes:
            _left[:] = [_room(max(ROOM, nbytes))]
        taken = _left[0][:nbytes]
        _left[0] = _left[0][nbytes + -nbytes % LINE :]
        return taken.view(x.dtype).view(x.shape).copy_(x)


def in_large_pages(x: Tensor) -> Tensor:
    """x, of which what was not yet written to will come in large pages."""
    advise, first = _advise(), x.data_ptr() + -x.data_ptr() % PAGE
    n = (x.data_ptr() + x.nbytes - first) // PAGE * PAGE
    if advise is not None and x.device.type == "cpu" and n > 0:
        advise(first, n, LARGE)  # refused, nothing is lost
    return x


def is_settled(x: Tensor) -> bool:
    """Whether x lies in such memory already."""
    return x.untyped_storage().data_ptr() in _addresses


def _room(nbytes: int) -> Tensor:
    whole = torch.empty(math.ceil(nbytes / PAGE) * PAGE + PAGE, dtype=torch.uint8)
    room = whole[-whole.data_ptr() % PAGE :][: whole.nbytes - PAGE]
    _addresses.add(whole.data_ptr())
    advise = _advise()
    if advise is not None:
        advise(room.data_ptr(), room.nbytes, LARGE)  # refused, nothing is lost
    return room


@functools.cache
def _advise() -> Any:
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return advise
