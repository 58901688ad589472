"""The private data of a partner: read, checked, imported, and recognised in texts that must not carry it.

May touch: the partner's files. It knows no network.
Start reading at private_data.py.
"""
