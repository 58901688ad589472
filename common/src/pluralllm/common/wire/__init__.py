"""Protobuf messages to values and back, chunks without protobuf's copies, and gRPC channels.

May touch: grpc and protobuf. Start reading at messages.py.
"""
