"""Too little memory: how each library says it, and the one sentence that comes of it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import re
from collections.abc import Iterator

from selfsup.errors import UserError, reason_of

#: What libraries say, in errors of many types, when they get no memory, no process or no thread.
SAID = (
    "out of memory",  # CUDA, cuDNN, FAISS, a decoder
    "out of shared memory",  # a loader's worker
    "allocate memory",  # torch on a CPU, the C library
    "allocate shared memory",
    "unable to allocate",  # NumPy
    "bad_alloc",  # C++
    "alloc_failed",  # cuBLAS, cuDNN, cuSOLVER
    "failed to cuda",  # NCCL: malloc, calloc
    "memoryerror",  # an error of a worker, told by its name
    "can't start new thread",
    "resource temporarily unavailable",  # no further process
    "failed to map segment",  # the loader of libraries
    "killed by signal: killed",  # a worker, by the kernel
)

#: What takes less memory, where no more is known than what kind of work it is.
TRAINING = (
    "lower batch_size, data.image_size or data.workers, or set trainer.activation_checkpointing=true or "
    "trainer.chunk_size"
)
EVALUATION = "lower eval.batch_size, data.image_size or data.workers"
OTHERWISE = "end other programs, or take a machine that has more"


class ShortageError(UserError):
    """There is too little memory for what was asked; the message names the settings that take less."""


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that there is too little memory, or no room for another thread or process."""
    if isinstance(error, MemoryError | ShortageError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, UserError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM or (isinstance(error, BlockingIOError) and "Resource" in str(error))
    if isinstance(error, ValueError):
        return "could not be made C-contiguous" in str(error)  # Matplotlib, of an array that it cannot copy
    if not isinstance(error, RuntimeError | OSError | ImportError):
        return False
    text = str(error).lower()
    return any(words in text for words in SAID)


def sentence(what: str, error: BaseException, advice: str, left: str = "") -> str:
    """Return the sentence for an error that :func:`lacks_memory`.

    Args:
        what: What was done, as the subject: ``the training``.
        error: What was raised.
        advice: What to do, naming the settings.
        left: What is still there.
    """
    text = " ".join(str(error).split())
    asked = re.search(r"(?:[Tt]ried|Unable) to allocate ([\d.]+) (\w+)", text)
    number, unit = (asked[1], asked[2]) if asked else ("", "")
    if unit == "bytes":
        power, unit = (1e9, "GB") if int(number) >= 1e9 else (1e6, "MB")
        number = f"{int(number) / power:.3g}"
    reason = f"it asked for another {number} {unit}" if asked else reason_of(error)[:200]
    if isinstance(error, ImportError):
        advice = "the libraries alone do not fit, so take another machine"
    limit = _limit()
    more = "" if limit is None else f", or raise ulimit -v, which lets this shell have {limit / 1e9:.3g} GB"
    return f"{what} needs more memory than there is ({reason}): {advice}{more}{left and f'; {left}'}."


@contextlib.contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Say in one sentence when what happens inside finds too little memory.

    Args:
        what, advice: As :func:`sentence` takes them.

    Raises:
        ShortageError: It does.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not lacks_memory(error):
            raise
        raise ShortageError(sentence(what, error, advice)) from error


def machine_lacks_memory(error: BaseException, size: int = 2**28) -> bool:
    """Return whether the machine, and not a damaged file that asks for absurd sizes, is why reading it failed.

    Args:
        error: What reading it raised.
        size: Bytes that reading a sound file of its kind takes.
    """
    if not lacks_memory(error):
        return False
    try:
        mmap.mmap(-1, max(1, size)).close()  # addresses alone, as no page of it is touched
    except (OSError, ValueError):
        return True
    return False


def _limit() -> int | None:
    """Return the bytes of addresses that this process may have, None for no limit."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        return None if soft == resource.RLIM_INFINITY else soft
    return None
