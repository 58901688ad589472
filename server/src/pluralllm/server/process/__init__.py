"""The basis of the coordinator's process: configuration, metrics, cancellation, and the stop after a disk failure.

The package may touch the C library's memory allocator and the Prometheus registry.
Start reading at config.py.
"""
