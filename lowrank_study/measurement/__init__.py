"""The spectra of two checkpoints or of an adapter, alone or beside a second update.

`request.py` reads the settings, `measure.py` measures, `pairs.py` and `adapters.py` open the two
kinds of subjects, and `comparison.py` compares updates.
"""
