"""Models and data sets by hub id, from a stand-in for the hub on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """The calls of the hub's interface that fetching a repository needs."""

    repositories: dict[str, Path]
    """`models/acme/tiny` → folder."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/"):
            kind, owner, name, *rest = path.removeprefix("api/").split("/")
            folder = self.repositories.get(f"{kind}/{owner}/{name}")
            if folder is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if rest[:1] == ["tree"]:
                return self._json(self._entries(folder, "/".join(rest[2:])))
            return self._json(self._description(f"{owner}/{name}", folder))
        kind, _, rest_of_path = path.partition("datasets/")
        whole = f"datasets/{rest_of_path}" if rest_of_path else f"models/{path}"
        repository, _, file = whole.partition("/resolve/")
        target = self.repositories.get(repository, ROOT / "nowhere") / file.partition("/")[2]
        if not target.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = target.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        kind, owner, name, call, *_ = self.path.removeprefix("/api/").split("/")
        folder = self.repositories.get(f"{kind}/{owner}/{name}")
        if folder is None or call != "paths-info":
            return self._send(404, b"{}", {})
        wanted = json.loads(body)["paths"]
        return self._json([e for e in self._entries(folder, "") if e["path"] in wanted])

    def _description(self, repository: str, folder: Path) -> dict[str, Any]:
        names = [
            {"rfilename": str(f.relative_to(folder))} for f in folder.rglob("*") if f.is_file()
        ]
        plain = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0}
        return {"id": repository, "sha": COMMIT, "siblings": names, **plain}

    def _entries(self, folder: Path, inside: str) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for file in sorted((folder / inside).rglob("*"))
            if file.is_file()
        ]

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def hub(
    tiny_model: Callable[[str], Path], review_file: Path, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """Give the environment in which the stand-in is the hub."""
    reviews = tmp_path / "reviews"
    reviews.mkdir()
    rows = pd.read_csv(review_file)
    for split, part in (("train", rows[:160]), ("validation", rows[160:])):
        part.to_parquet(reviews / f"{split}.parquet", index=False)
    Hub.repositories = {"models/acme/tiny": tiny_model("bert"), "datasets/acme/reviews": reviews}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # whichever test is the first to fetch the model
        "LOWRANK_STUDY_CACHE": str(tmp_path / "cache"),
    }
    server.shutdown()
    server.server_close()
    thread.join()


def train(environment: dict[str, str], *overrides: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), *overrides]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


MODEL = ["model=bert", "model.source=acme/tiny", "model.name=tiny", "method.rank=2"]
TASK = [
    "task=hub",
    "task.source=acme/reviews",
    "task.test=validation",
    "task.label_column=verdict",
    "task.validation_size=30",
]


@pytest.mark.slow
def test_a_model_and_a_data_set_of_the_hub(hub: dict[str, str], tmp_path: Path) -> None:
    done = train(hub, *MODEL, *TASK, f"results={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    assert "done: test accuracy 0." in done.stdout
    [record] = (tmp_path / "results" / "runs").glob("*/record.json")
    examples = json.loads(record.read_text())["examples"]
    assert examples == {"train": 130, "validation": 30, "test": 80}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "name"),
    [("model.source=acme/none", "acme/none"), ("task.source=acme/nothing", "acme/nothing")],
)
def test_an_unknown_hub_id_is_one_line(
    override: str, name: str, hub: dict[str, str], tmp_path: Path
) -> None:
    done = train(hub, *MODEL, *TASK, f"results={tmp_path / 'results'}", override)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert name in done.stderr
    assert "local folder" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_an_unreachable_hub_is_one_line(hub: dict[str, str], tmp_path: Path) -> None:
    nobody = {**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = train(nobody, *MODEL, *TASK, f"results={tmp_path / 'results'}")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "acme/tiny" in done.stderr
    assert "network" in done.stderr
