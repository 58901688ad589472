"""Holds the basis of the daemon's process: its configuration and its Prometheus metrics.

The package may touch the Prometheus registry. The package imports no other package of the client.
Start reading at config.py.
"""
