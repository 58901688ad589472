"""Methods compared in one process: the predictor, episodes, round machine and aggregation of the service, without gRPC."""
