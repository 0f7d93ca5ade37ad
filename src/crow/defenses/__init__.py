"""Methods that remove backdoors."""
