"""Experiments: a grid of attacks, models, defenses and seeds, one record a cell."""
