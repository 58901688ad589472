"""Runs the daemon's loop: poll, fetch, check against the policy, work, push, delete; and renews the certificate meanwhile.

May touch: everything of the client.
Start reading at daemon.py, then policy.py.
"""
