"""Answers: translates gRPC calls to calls on the other rooms, and their results and errors back.

May touch: grpc and protobuf; it is the only room of the server (beside members/tls.py) that does.
Start reading at federation.py and polling.py (the calls of clients) and boundary.py (the wrapper around every call).
"""
