"""The Python client of OperationsService, for the command line and for rewards in a trainer.

May touch: grpc and protobuf.
Start reading at remote.py.
"""
