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
    """The settings of `conf/check_claims.yaml`."""

    results: Path
    sweeps: tuple[str, ...]
    records: tuple[str, ...]
    live: bool
    rounds: int
    out: Path


def read_claim_request(config: Mapping[str, Any]) -> ClaimRequest:
    """Read the settings."""
    fields = Fields("", config)
    out = require_folder(fields.path_of("out"))
    return ClaimRequest(
        results=fields.path_of("results"), sweeps=fields.names("sweep"),
        records=fields.names("record"), live=fields.flag("live"),
        rounds=fields.integer("rounds", at_least=1), out=out,
    )  # fmt: skip


def check_request(request: ClaimRequest) -> list[Entry]:
    """Read the evidence, time adapters if asked for, and check every claim."""
    claims = load_claims()
    timed = measure_serving(rounds=request.rounds) if request.live else None
    evidence = load_evidence(
        request.results, sweeps=request.sweeps, records=request.records, serving=timed
    )
    return check_claims(claims, evidence)
