"""Rewards by group: reads and writes batches of rollouts as JSON, and combines the rewards of several groups into one reward.

The package may import numpy. Start reading at aggregation.py.
"""
