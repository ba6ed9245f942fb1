"""Estimate how much memory a training needs, from the model's configuration alone.

python analysis/estimate_memory.py model=llama model.source=meta-llama/Llama-3.1-8B memory=24
python analysis/estimate_memory.py architecture=llama_65b method=full
python analysis/estimate_memory.py model=minilm kind=classification precision=fp32
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command


def memory(config: Mapping[str, Any]) -> None:
    """Print the memory by what takes it, and whether it fits."""
    from lowrank_study.reporting.memory_table import memory_table
    from lowrank_study.training.estimate import estimate, read_request

    request = read_request(config)
    print(memory_table(request, estimate(request)))


main = command(memory, config_name="estimate_memory")

if __name__ == "__main__":
    main()
