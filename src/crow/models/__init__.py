"""Loading any causal language model, finding its parts and generating with it."""
