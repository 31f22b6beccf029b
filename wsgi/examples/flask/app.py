"""A Flask app with a requirement of its own."""

import os

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def index():
    return {
        "greeting": os.environ.get("GREETING", "hello"),
        "server": request.environ.get("SERVER_SOFTWARE") or "uWSGI",
        "worker": os.getpid(),
    }


@app.get("/healthz")
def healthz():
    return "ok\n"
