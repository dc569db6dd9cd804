"""What a Hub is sent when a model is pushed to it; here one on the loopback."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN


@pytest.fixture
def hub(monkeypatch):
    """A Hub on the loopback that takes repositories and commits; gives what it was sent, by kind."""
    sent = {"repository": [], "branch": [], "commit": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = 200, {}
            if self.path == "/api/repos/create":
                sent["repository"].append(json.loads(body) | {"authorization": self.headers["Authorization"]})
                status = 200 if "forbidden" not in body.decode() else 403
                answer = {"url": f"{endpoint}/me/moves", "error": "no rights"}
            elif "/branch/" in self.path:
                sent["branch"].append(self.path.rpartition("/")[2])
            elif "/preupload/" in self.path:
                files = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]}
            elif "/commit/" in self.path:
                sent["commit"].append((self.path, [json.loads(line) for line in body.splitlines()]))
                answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{endpoint}/me/moves/commit/{'0' * 40}"}
            self.reply(status, answer)

        def do_GET(self):
            there = "forbidden" not in self.path
            self.reply(200 if there else 404, {"id": "me/moves", "sha": "1" * 40, "siblings": []})

        def reply(self, status, answer):
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield sent
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_push_makes_the_repository_and_sends_what_save_pretrained_writes(tiny_model, states_equal, hub, tmp_path):
    model = tiny_model()
    address = model.push_to_hub("me/moves", private=True, revision="v2", token="hf_secret", commit_message="first")
    assert address.endswith("/me/moves/commit/" + "0" * 40)
    (repository,) = hub["repository"]
    assert (repository["name"], repository["organization"]) == ("moves", "me")
    assert repository.get("visibility") == "private" or repository["private"]  # before huggingface_hub 2
    assert repository["authorization"] == "Bearer hf_secret"
    assert hub["branch"] == ["v2"]
    ((path, lines),) = hub["commit"]
    assert path == "/api/models/me/moves/commit/v2"
    assert lines[0]["value"]["summary"] == "first"
    for line in lines[1:]:
        (tmp_path / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert states_equal(LitCSN.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_a_push_that_the_hub_refuses_says_why(tiny_model, hub):
    with pytest.raises(InputError, match=r"me/forbidden was not pushed to the Hub: .*403"):
        tiny_model().push_to_hub("me/forbidden", token="hf_secret")
    with pytest.raises(InputError, match=r"me/a/b was not pushed to the Hub: .*me/a/b"):
        tiny_model().push_to_hub("me/a/b", token="hf_secret")
    assert hub["commit"] == []
