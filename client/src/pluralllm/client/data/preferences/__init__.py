"""Reads preferences between candidate answers, in our own layout, by mapped columns and in public layouts.

The package reads a partner's files through client/data/tables.py. It makes no network calls.
Start reading at imports.py; layouts.py holds the table of public layouts.
"""
