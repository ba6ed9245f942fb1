"""Published tables beside our own numbers: `tables.py` compares, `measures.py` measures."""
