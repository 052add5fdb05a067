"""A local OpenAI-compatible endpoint that answers from a script, with faults."""

import http.server
import json
import threading
import time


def reply(text="1", **more):
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    return 200, json.dumps({"choices": [{"message": message, **more}], "usage": usage}).encode()


class FakeServer:
    """A local endpoint that answers from a script, its last entry for ever; `asked` keeps the
    requests.
    """

    def __init__(self):
        self.script, self.asked, self.keys = [reply()], [], []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(body)
                fake.keys.append((self.path, self.headers["Authorization"]))
                entry = fake.script.pop(0) if len(fake.script) > 1 else fake.script[0]
                entry = entry(body) if callable(entry) else entry
                status, data, headers = entry if len(entry) == 3 else (*entry, {})
                if status == "hang":
                    time.sleep(data)
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
