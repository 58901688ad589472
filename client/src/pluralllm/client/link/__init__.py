"""Calls the coordinator, with deadlines and retries. The package `operator` uses the module model_download, too.

The package may touch grpc and protobuf. Private data never enters the package.
Start reading at transport.py.
"""
