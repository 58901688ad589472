"""Converts protobuf messages to values and back, writes and reads chunks with few copies, and opens gRPC channels.

May touch: grpc and protobuf. Start reading at messages.py.
"""
