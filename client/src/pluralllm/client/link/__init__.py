"""Talks to the coordinator: RPCs, retries, deadlines, the channel, and what is counted of them.

May touch: grpc and protobuf. No private data comes here.
Start reading at transport.py.
"""
