"""Lets a new interpreter hand its work to the fork server of the tests, if they ask for that (support/fork_server.py).

Python imports a module of this name at the start, when its folder is on PYTHONPATH. The interpreter then has imported nothing
that takes time: it only passes signals on and ends as the fork ends.
"""

import os
import sys

if "FORK_SERVER" in os.environ:
    words = sys.orig_argv[1:3]
    name = words[1] if words[:1] == ["-m"] and words[1:] else words[0].rpartition("/")[2] if words else ""
    if name in os.environ["FORKED"].split():
        import array
        import json
        import signal
        import socket

        server = socket.socket(socket.AF_UNIX)
        server.connect(os.environ["FORK_SERVER"])
        facts = json.dumps([sys.orig_argv[1:], dict(os.environ), os.getcwd()]).encode()  # noqa: PTH109 - pathlib takes longer to import
        ends = array.array("i", [0, 1, 2])
        server.sendmsg([len(facts).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
        server.sendall(facts)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        for stream in ends:
            os.close(stream)  # a pipe's other end sees the fork's end only if nobody else holds this one
        answer = server.recv(4)  # none if the server has ended
        code = int.from_bytes(answer, "big", signed=True) if answer else 1
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)
