"""Rewards of groups: batches of rollouts as JSON, and how several groups' rewards become one.

May touch: numpy. Start reading at aggregation.py.
"""
