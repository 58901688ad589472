"""Turns an invite into an identity, and explains why a coordinator cannot be reached.

The package may touch the files of the identity, sockets and the coordinator's enrolment port.
Start reading at joining.py, then diagnosis.py.
"""
