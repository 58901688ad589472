"""The partner's daemon: private data stays here, weight deltas leave."""
