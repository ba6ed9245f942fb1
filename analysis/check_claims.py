"""Check published claims about LoRA by arithmetic and by your own runs.

python analysis/check_claims.py
python analysis/check_claims.py sweep=first_study live=true
python analysis/check_claims.py 'record=[2026-11-26_flagship_reuters_r52,2026-11-26_papers]'
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.config.fields import Fields
from lowrank_study.files import require_folder


def check(config: Mapping[str, Any]) -> None:
    """Check every claim, write the ledger, and print its path and the verdicts."""
    from lowrank_study.sweeps.outcome import check_sweeps, require_sweeps

    require_folder(Fields("", config).path_of("out"))
    require_sweeps(config)
    from lowrank_study.claims.request import check_request, read_claim_request
    from lowrank_study.reporting.claims_ledger import summary_of, write_ledger

    request = read_claim_request(config)
    entries = check_request(request)
    path = write_ledger(entries, request.out)
    print(f"{path}: {summary_of(entries)}")
    check_sweeps(config)


main = command(check, config_name="check_claims")

if __name__ == "__main__":
    main()
