"""Keys, certificates, invites and the audit log's hash chain, for both sides.

May touch: cryptography; files in identity.py, sockets in handshake.py. Start reading at certificates.py.
"""
