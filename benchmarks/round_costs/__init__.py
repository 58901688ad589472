"""Costs of private rounds, for private_rounds.py: of all parties in one process, in the real service, and in alignment.

Start reading in parties.py: one round whose members and coordinator share a process, so that their CPU time can be told apart.
"""
