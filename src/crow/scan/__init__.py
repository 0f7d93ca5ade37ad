"""Is this model likely backdoored? Evidence from several sides, and one verdict."""
