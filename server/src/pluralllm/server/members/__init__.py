"""Admission: invites, members, certificates, the calls that each role may make, and the log of who did what.

May touch: the membership tables, the certificate authority's files.
Start reading at registry.py; access.py is the table of rights, door.py the check before every call.
"""
