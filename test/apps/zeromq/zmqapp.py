"""An app that creates a ZeroMQ context and a socket when it is imported.

A context must not cross a fork, and threads must not share a socket: if a server does either, the poll below ends with
nothing or with the answer to another question.
"""

import zmq

context = zmq.Context()
socket = context.socket(zmq.REQ)
socket.connect("tcp://127.0.0.1:5599")  # responder.py


def application(environ, start_response):
    question = environ["QUERY_STRING"].encode()
    status, answer = "200 OK", b"ask me something\n"
    if question:
        socket.send(question)
        if socket.poll(5000):
            answer = socket.recv()
        else:
            status, answer = "504 Gateway Timeout", b"no answer\n"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
