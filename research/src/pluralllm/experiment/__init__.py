"""Compares training methods in one process, with the service's predictor, episodes, round machine and aggregation, without gRPC.

May touch: torch, files, worker processes. It imports the coordinator's pure rooms only.
Start reading at spec.py (what an experiment is), then play.py and federated.py.
"""
