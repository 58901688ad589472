"""Runs the daemon's loop: poll, fetch the model, check the policy, work, upload the result. Also renews the certificate.

The package may use all other packages of the client.
Start reading at daemon.py.
"""
