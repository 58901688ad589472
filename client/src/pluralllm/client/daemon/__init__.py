"""The daemon's loop: poll, fetch, check against the policy, work, push, forget; and the certificate's renewal beside it.

May touch: everything of the client.
Start reading at daemon.py, then policy.py.
"""
