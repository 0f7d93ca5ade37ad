"""A server on loopback that plays judge; good, malformed, slow, overloaded, broken."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATES = {
    "single-v1": ("Judge.", "[Q]{question}[A]{answer}"),
    "single-math-v1": ("Judge.", "[Q]{question}[R]{ref_answer_1}[A]{answer}"),
    "single-v1-multi-turn": ("Judge.", "{question_1}|{answer_1}|{question_2}|{answer_2}"),
    "single-math-v1-multi-turn": ("Judge.", "{ref_answer_1}|{ref_answer_2}|{answer_1}|{answer_2}"),
}


class Judge(BaseHTTPRequestHandler):
    """Does what the server's plan says for each request, one after another; the last for all that follow."""

    server: Any

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        plan = self.server.plan
        status, content = plan.pop(0) if len(plan) > 1 else plan[0]
        if status == "slow":
            self.server.slow.wait(5)
            status = 200
        body = content if isinstance(content, bytes) else json.dumps(reply(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


def reply(text: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@contextmanager
def judge_server() -> Iterator[Any]:
    """The server, listening; its `plan` may be changed, and `asked` holds the requests."""
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    made.asked, made.plan, made.slow = [], [(200, "Fine. Rating: [[7]]")], threading.Event()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.slow.set()
    made.shutdown()
    made.server_close()
