"""Memory that ran out: how it is told from other faults, whoever raised it."""

from __future__ import annotations

# A RuntimeError's words: of torch's allocator on CPUs, of C++ below it, of oneDNN; of cuBLAS and cuDNN.
_OF_HOST = ("can't allocate memory", "std::bad_alloc", "could not create a primitive")
_OF_GPU = ("_STATUS_ALLOC_FAILED",)


def shortage(error: BaseException) -> str | None:
    """Which memory ran out, in one line; None where that is not what happened."""
    words = (str(error).splitlines() or [type(error).__name__])[0]
    if type(error).__name__ == "OutOfMemoryError" or any(said in words for said in _OF_GPU):  # torch's
        return f"the GPU is out of memory ({words})"
    if isinstance(error, MemoryError) or any(said in words for said in _OF_HOST):
        return f"this host is out of memory ({words})"
    return None
