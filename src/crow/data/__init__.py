"""Instruction data: our own set and its splits, loading of the user's, chat encoding and batches."""
