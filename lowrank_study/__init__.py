"""Finds out how low-rank fine-tuning really is."""
