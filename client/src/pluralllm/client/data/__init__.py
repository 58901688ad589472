"""Reads, checks and imports a partner's private data, and recognises the data in texts that leave this machine.

The package may touch the partner's files. The package makes no network calls.
Start reading at private_data.py.
"""
