"""What happens inside a model: diagnostics that need no judge."""
