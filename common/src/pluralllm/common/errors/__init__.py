"""The tree of typed errors, and the table that gives each error class its gRPC status code.

Only grpc_status.py may import grpc. Start reading at tree.py, whose docstring draws the tree.
"""
