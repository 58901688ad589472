"""Calls the coordinator: RPCs, retries, deadlines and the connection. The operator's package uses the model download, too.

The package may touch grpc and protobuf. Private data never enters the package.
Start reading at transport.py.
"""
