"""The ground of the coordinator's process: configuration, instruments, cancellation, and its end when a disk cannot be trusted.

May touch: the C library's allocator, the Prometheus registry.
Start reading at config.py.
"""
