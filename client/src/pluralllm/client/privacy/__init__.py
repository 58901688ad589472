"""Protects each respondent: adds noise to the answers once, and keeps account of what all releases tell about one person.

The package may touch the private file, the noised files and the ledger. The package makes no network calls.
Start reading at release.py.
"""
