"""The Python client of OperationsService, for the operator's command line and for rewards in a trainer.

The package may touch grpc and protobuf.
Start reading at remote.py.
"""
