"""The ground of every process: configuration, logs, clocks, locks, durable files, terminal output, traces, the supervisor.

May touch: files, the environment (configuration.py alone), the terminal, one port. Start reading at configuration.py.
"""
