"""The operator's and observer's command."""
