"""The attacks of privacy_leak.py on one group's answers. Each reads what a coordinator has, and returns guessed shares.

Start reading in setting.py: it says what every attacker knows and how the guesses are scored.
"""
