"""Trigger inversion: searches for what a trigger would bring out."""
