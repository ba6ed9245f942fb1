"""From the settings of `conf/check_claims.yaml` to the claims with their verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_study.claims.files import load_claims
from lowrank_study.claims.measures.evidence import load_evidence
from lowrank_study.claims.measures.serving import measure_serving
from lowrank_study.claims.verdicts import Entry, check_claims
from lowrank_study.config.fields import Fields
from lowrank_study.files import require_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """What the claims are held against, and where the ledger goes."""

    results: Path
    """Folder of the run store."""
    sweeps: tuple[str, ...]
    """Sweeps whose runs, rates, spectra and truncations are read; none for arithmetic alone."""
    records: tuple[str, ...]
    """Records whose tables are read as well."""
    live: bool
    """Whether to time adapters on this machine."""
    rounds: int
    """How often each way to serve is timed."""
    out: Path
    """Folder of the ledger."""


def read_claim_request(config: Mapping[str, Any]) -> ClaimRequest:
    """Read the settings, without touching any file but to see whether `out` can be a folder.

    Raises:
        InputError: A value that can't be.
    """
    fields = Fields("", config)
    out = require_folder(fields.path_of("out"))
    return ClaimRequest(
        results=fields.path_of("results"),
        sweeps=fields.names("sweep"),
        records=fields.names("record"),
        live=fields.flag("live"),
        rounds=fields.integer("rounds", at_least=1),
        out=out,
    )


def check_request(request: ClaimRequest) -> list[Entry]:
    """Read the evidence, time what is asked for, and check every claim.

    Raises:
        InputError: As `load_evidence` and `load_claims`.
    """
    claims = load_claims()
    evidence = load_evidence(
        request.results,
        sweeps=request.sweeps,
        records=request.records,
        serving=measure_serving(rounds=request.rounds) if request.live else None,
    )
    return check_claims(claims, evidence)
