"""Talks to the coordinator: RPCs, retries, deadlines and the channel.

May touch: grpc and protobuf. No private data comes here.
Start reading at transport.py.
"""
