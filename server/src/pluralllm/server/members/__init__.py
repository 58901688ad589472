"""Admission: invites, members, certificates, the calls that each role may make, and the audit log of who did what.

The package may touch the membership tables and the certificate authority's files.
Start reading at registry.py; access.py is the table of rights, door.py the check before every call.
"""
