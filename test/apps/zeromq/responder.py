"""Answers every question with its reversed text."""

import zmq

socket = zmq.Context().socket(zmq.REP)
socket.bind("tcp://127.0.0.1:5599")
while True:
    socket.send(socket.recv()[::-1])
