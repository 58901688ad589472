"""Compares training methods in one process, with the service's own predictor, round machine and aggregation, without gRPC.

The package may touch torch, files and worker processes. It imports only the pure packages of the coordinator.
Start reading at spec.py, which describes an experiment; then read play.py and federated.py.
"""
