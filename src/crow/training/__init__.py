"""Settings, loss and trainer of the purification."""
