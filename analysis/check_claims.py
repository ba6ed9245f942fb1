"""Hold what documents and papers claim of LoRA against arithmetic and against trained runs.

python analysis/check_claims.py
python analysis/check_claims.py sweep=rank_sweep live=true
python analysis/check_claims.py record=[2026-11-26_flagship_reuters_r52,2026-11-26_papers]
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain
from lowrank_study.reporting.claims_ledger import summary_of, write_ledger
from lowrank_study.study.claims.request import check_request, read_claim_request


def check(config: DictConfig) -> None:
    """Check every claim, write the ledger, and say where it is and how the verdicts fell."""
    request = read_claim_request(plain(config))
    entries = check_request(request)
    path = write_ledger(entries, request.out)
    print(f"{path}: {summary_of(entries)}")


main = command(check, config_name="check_claims")

if __name__ == "__main__":
    main()
