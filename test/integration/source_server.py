"""A web server on loopback: source_server.py PORT FOLDER [USER:PASSWORD CERTIFICATE]

With credentials it speaks TLS and requires them. /moved/… redirects to port 8001, as to another host. For each
request it appends to <folder>.<port>.seen whether credentials came with it, and the arguments of all processes, one of
which is waiting for the response.
"""

import base64
import http.server
import ssl
import subprocess
import sys

port, folder, credentials, certificate = (sys.argv[1:] + [None, None])[:4]


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, directory=folder, **kwargs)

    def do_GET(self):
        seen = subprocess.run(["ps", "-ewwo", "user:20,args"], check=True, capture_output=True, text=True).stdout
        with open(f"{folder}.{port}.seen", "a") as file:
            # Never the credentials themselves, which tests look for.
            file.write(f"{self.path} {(self.headers['Authorization'] or 'None').split()[0]}\n{seen}")
        if credentials and self.headers["Authorization"] != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:8001{self.path[len('/moved') :]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()


wanted = credentials and "Basic " + base64.b64encode(credentials.encode()).decode()
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
if certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
