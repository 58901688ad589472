"""The tree of typed errors, and the table that gives each of them its gRPC status code.

May touch: grpc, in grpc_status.py only. Start reading at tree.py, whose docstring draws the tree.
"""
