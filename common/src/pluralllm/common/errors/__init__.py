"""The error tree, and the one table between its leaves and gRPC status codes.

May touch: grpc, in grpc_status.py only. Start reading at tree.py, whose docstring draws the tree.
"""
