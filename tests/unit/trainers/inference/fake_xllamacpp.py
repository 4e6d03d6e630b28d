"""Stands for the package xllamacpp in an environment of its own: answers like llama.cpp's server.

The text of an answer names what the server was started with, so that a test can look at it.
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 turns clients away where the machine is busy


class CommonParams:
    """Parameters by name."""

    def __init__(self):
        self.model = SimpleNamespace(path="")
        self.cpuparams = SimpleNamespace(n_threads=-1)
        self.cpuparams_batch = SimpleNamespace(n_threads=-1)
        draft = SimpleNamespace(mparams=SimpleNamespace(path=""), n_max=0)
        self.speculative = SimpleNamespace(draft=draft)
        self.api_keys = []


class Server:
    """Listens in threads."""

    def __init__(self, params):
        if os.environ.get("FAKE_ENDS") == "at its start":
            os.write(1, b"the weights are of another planet\n")
            os._exit(7)
        self.params, self.asked = params, 0
        handler = type("Handler", (_Handler,), {"server_of": self})
        self.http = _Server((params.hostnames[0], params.port), handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.listening_address = f"http://{params.hostnames[0]}:{params.port}"


class _Handler(BaseHTTPRequestHandler):
    server_of: Server

    def log_message(self, *args):
        pass

    def send(self, code, text):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def is_allowed(self):
        keys = self.server_of.params.api_keys
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if keys and given not in keys:
            self.send(401, '{"error": "Invalid API Key"}')
            return False
        return True

    def do_GET(self):
        if self.path == "/health":
            self.send(200, '{"status": "ok"}')
        elif self.is_allowed():
            (name,) = self.server_of.params.model_alias
            self.send(200, json.dumps({"data": [{"id": name}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_allowed():
            return
        fake = self.server_of
        fake.asked += 1
        if os.environ.get("FAKE_ENDS") == "when asked" and fake.asked > 12:
            os.write(1, b"out of memory, sorry\n")
            os._exit(9)
        if "fail" in body["messages"][0]["content"]:
            self.send(500, '{"error": "no"}')
            return
        self.send_response(200)
        self.end_headers()
        for number in range(body["max_tokens"]):
            time.sleep(0.002)
            self.event({"choices": [{"delta": {"content": f"w{number} "}}]})
        self.event({"choices": [{"delta": {}, "finish_reason": "length"}]})
        self.event({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
