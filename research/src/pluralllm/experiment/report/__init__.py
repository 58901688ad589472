"""Results as a page to look at: figures, tables and findings, of an experiment or of a live run. No torch, no gRPC."""
