"""What documents and papers claim of LoRA, each claim with what is measured and its verdict.

`files.py` reads the claims of `conf/claim/`, `measures/` measures, `verdicts.py` holds the one
against the other, and `request.py` is what `analysis/check_claims.py` asks.
"""
