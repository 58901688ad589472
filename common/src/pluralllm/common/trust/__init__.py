"""Keys, certificates, invites and the hash chain of the audit log, for coordinator and members alike.

May touch: cryptography; files in identity.py, sockets in handshake.py. Start reading at certificates.py.
"""
