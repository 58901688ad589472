"""Decides what may leave this machine. No coordinator can change the decisions.

The package may touch files in the state directory and the partner's policy file. It uses the module `tasks` of the package link.
Start reading at policy.py.
"""
