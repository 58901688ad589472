"""The gRPC services: they convert each RPC into calls on the other packages, and convert results and errors back.

The package may touch the libraries grpc and protobuf. No other module of the server may touch these libraries, except
members/tls.py.
Start reading at federation.py and polling.py (the RPCs of clients) and at boundary.py (the wrapper around every RPC).
"""
