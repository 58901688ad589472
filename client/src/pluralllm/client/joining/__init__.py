"""Turns an invite into an identity, and explains why a coordinator cannot be reached.

May touch: the identity's files, sockets, the enrolment port.
Start reading at joining.py, then diagnosis.py.
"""
