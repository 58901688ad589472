"""The gRPC services: they convert each RPC into calls on the other packages, and convert results and errors back.

The package may touch grpc and protobuf. Apart from members/tls.py, no other module of the server may touch them.
Start reading at federation.py and polling.py (the RPCs of clients) and at boundary.py (the wrapper around every RPC).
"""
