"""Code for all processes: configuration, logs, clocks, locks, durable files, terminal output, traces, the supervisor.

The package may use files, the environment (only configuration.py reads it), the terminal, and the port for metrics.
Start reading at configuration.py.
"""
