"""The web page that a function of the plugin fetches, by HTTPS on an address of ours."""

import argparse
import http.server
import ssl

PAGE = b"<!DOCTYPE html>\n<title>Functions</title>\n<p>The page that functions fetch in a test.</p>\n"


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, address, context):
        super().__init__(address, Page)
        self.context = context

    def finish_request(self, request, client_address):
        # In the thread of the connection, so that a slow handshake holds nobody up.
        request.settimeout(30)
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("certificate")
    parser.add_argument("key")
    parser.add_argument("--port", type=int, default=443)
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.certificate, arguments.key)
    with Server((arguments.address, arguments.port), context) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
