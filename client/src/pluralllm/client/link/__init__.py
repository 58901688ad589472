"""Calls the coordinator: RPCs, retries, deadlines and the connection. The download of a model is for the operator, too.

May touch: grpc and protobuf. No private data comes here.
Start reading at transport.py.
"""
