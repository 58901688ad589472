"""The basis of the coordinator's process: configuration, metrics, cancellation, and its stop when a disk cannot be trusted.

May touch: the C library's allocator, the Prometheus registry.
Start reading at config.py.
"""
