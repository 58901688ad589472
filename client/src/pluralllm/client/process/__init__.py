"""Holds the ground of the daemon's process: its configuration and its Prometheus instruments.

May touch: the Prometheus registry. It knows no other room of the client.
Start reading at config.py.
"""
