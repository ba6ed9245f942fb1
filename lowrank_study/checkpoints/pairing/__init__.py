"""Two checkpoints of one model, matrix by matrix: what matches, and what is left out."""
