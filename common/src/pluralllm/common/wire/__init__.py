"""Converts protobuf messages to values and back, writes and reads chunks with few copies, and opens gRPC channels.

The package may import grpc and protobuf. Start reading at messages.py.
"""
