"""Write an estimate of memory as a table with its answer in words."""

from lowrank_study.reporting.display import in_bytes
from lowrank_study.training.estimate import Estimate, Request


def memory_table(request: Request, found: Estimate) -> str:
    """Return the answer, and the memory by what takes it.

    >>> print(memory_table(request, estimate(request)))
    llama_7b with lora (r=8) needs 29.5 GB beside the libraries, and doesn't fit into 24 GB.
    …
    """
    training = sum(found.training.values())
    rows = [(f"  {part}", size) for part, size in found.training.items()]
    rows += [("training", training), ("check before training, with fp32 weights", found.check)]
    widest = max(len(part) for part, _ in rows)
    lines = [f"{part.ljust(widest)}  {in_bytes(size).rjust(9)}" for part, size in rows]
    return "\n".join([_answer(request, found), "", *lines])


def _answer(request: Request, found: Estimate) -> str:
    method = request.method
    rank = "" if method.adapter_rank is None else f" (r={method.adapter_rank})"
    subject = f"{request.base.name} with {method.label}{rank}"
    needs = f"{subject} needs {in_bytes(found.peak)} beside the libraries"
    if request.available is None:
        return f"{needs}."
    limit = in_bytes(request.available)
    if found.peak <= request.available:
        return f"{needs}, and fits into {limit}."
    if sum(found.training.values()) <= request.available:
        return f"{needs}: training would fit into {limit}, but not the check before it."
    return f"{needs}, and doesn't fit into {limit}."
