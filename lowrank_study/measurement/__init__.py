"""The spectra of whatever a user brings: two checkpoints, an adapter, another one beside it.

`request.py` is what `analysis/measure_spectra.py` asks, `measure.py` answers it, `files.py` says
which files it read, `comparison.py` compares updates, and `readings.py` says what may be read off.
"""
