"""Judging outputs: attack success, clean rates and perplexity."""
