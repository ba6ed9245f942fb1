"""Claims about LoRA in documents and papers, each with a measured value and a verdict.

`files.py` reads the claims of `conf/claim/`, `measures/` measures them, `verdicts.py` decides, and
`request.py` does all three for `analysis/check_claims.py`.
"""
