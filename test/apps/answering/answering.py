"""
Counts its responses, and sends the headers that the query names: ?X-Shop=1&status=404&size=1000&sleep=1.
With ?broken=/a/file it fails while that file exists.
"""

import os
import time
from urllib.parse import parse_qsl

answers = 0


def application(environ, start_response):
    global answers
    answers += 1
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    status, size = query.pop("status", "200"), int(query.pop("size", 0))
    if os.path.exists(query.pop("broken", "")):
        status = "500"
    time.sleep(float(query.pop("sleep", 0)))
    body = f"{os.environ.get('GREETING', 'answer')} {answers}\n".encode().ljust(size)
    headers = {"Content-Type": "text/plain", "Content-Length": str(len(body)), **query}
    if environ["REQUEST_METHOD"] == "HEAD":
        # As frameworks do that leave the length to the server.
        del headers["Content-Length"]
        body = b""
    start_response(f"{status} Said So", list(headers.items()))
    return [body]
