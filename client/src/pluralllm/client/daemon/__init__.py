"""Runs the daemon's loop: poll, fetch the model, check the policy, work, upload the result, delete it; renews the certificate.

The package may touch everything of the client.
Start reading at daemon.py, then policy.py.
"""
