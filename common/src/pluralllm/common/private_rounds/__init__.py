"""The protocol of private rounds: updates are masked so that the coordinator learns their sum, and no single update.

Everything here is pure: keys, random numbers and files are arguments. Coordinator, client, audit and `verify` use the same
functions. The package may import numpy and cryptography. Source: Bonawitz et al. 2017 (CCS 17, eprint 2017/281), the variant
for a malicious server, with signed statements. Start reading at statements.py, then dealing.py and round_sum.py.
"""
