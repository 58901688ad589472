"""Keys, certificates, invites and the hash chain of the audit log, for coordinator and members alike.

The package may import cryptography; identity.py and invite.py may use files, and handshake.py may use sockets.
Start reading at certificates.py.
"""
