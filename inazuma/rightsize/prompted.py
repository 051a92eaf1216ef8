"""A large model that is only asked: served from a folder, at any OpenAI-compatible address, or by what it once said."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from inazuma import config
from inazuma.errors import RunError, UserError, needs_extra
from inazuma.files import read_json
from inazuma.rightsize.energy import counted, since
from inazuma.rightsize.generative import readable
from inazuma.rightsize.measure import peak_memory
from inazuma.rightsize.predictor import RUNG, Answer, write_kind
from inazuma.rightsize.splits import normal
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Prompted, Task
from inazuma.runs.lines import encode_line, read_lines

TUNED_ON = 24
"""Validation items that a trial looks at: each costs a request."""
SAID = "said.jsonl"
"""Every answer that was ever paid for, in the run folder: a run that goes on asks nothing twice."""
LONGEST_LABEL, LONGEST_ANSWER = 32, 256
"""Tokens that an answer may have: a label in JSON, anything else. One that is cut off counts as truncated."""
_LONGEST_WAIT = 60.0


def choices(task: Task) -> list[dict[str, Any]]:
    """How many examples the prompt shows; nothing can be chosen of recorded outputs."""
    if task.prompted.outputs is not None:
        return [{}]
    most = task.prompted.examples
    return [{"examples": count} for count in dict.fromkeys((most, 0, most // 2))]


@contextmanager
def serving(prompted: Prompted, out: Path) -> Iterator[dict[str, str]]:
    """Where to ask: `url`, `model`, and `process` where we started the server ourselves."""
    if prompted.outputs is not None:
        yield {}
    elif prompted.address is not None:
        yield {"url": prompted.address.rstrip("/"), "model": prompted.model}
    else:
        needs_extra("serve", "fastapi", "uvicorn", "llguidance", "httpx2")
        command = [sys.executable, "-m", "inazuma", "serve", str(prompted.folder), "--port", "0", "--name", "asked"]
        began = time.perf_counter()
        with open(out / "serve.log", "w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                for line in process.stdout:
                    if " is served at " in line:
                        break
                else:
                    raise RunError(f"{' '.join(command)} ended; see {out / 'serve.log'}")
                url = line.split()[-1].rstrip("/")
                _wait_until_ready(url)
                cold = str(time.perf_counter() - began)
                yield {"url": f"{url}/v1", "model": "asked", "process": str(process.pid), "cold_start_s": cold}
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_until_ready(url: str) -> None:
    import httpx2

    with httpx2.Client(base_url=url, timeout=10, trust_env=False) as client:
        for _ in range(600):
            try:
                if client.get("/v1/models").status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.2)
    raise RunError("the model was not ready after two minutes")


class Asked:
    """A prompt around each text. `shown` are the examples in it; `recorded` are outputs by text, if nobody is asked."""

    def __init__(
        self,
        task: Task,
        labels: list[str] | None,
        shown: list[tuple[str, str]],
        endpoint: dict[str, str],
        said: Path | None,
        recorded: dict[str, dict[str, Any]] | None = None,
        used: int = 0,
    ):
        self.task, self.labels, self.shown, self.endpoint = task, labels, shown, endpoint
        self.said, self.recorded, self.used = said, recorded, used
        self._known = {line["key"]: line for line in read_lines(said)} if said is not None and said.exists() else {}

    @classmethod
    def fit(
        cls, task: Task, examples: Sequence[Example], choice: dict[str, Any], endpoint: dict[str, str], out: Path
    ) -> Asked:
        labels = sorted({e.target for e in examples}) if task.kind == "classification" else None
        if task.prompted.outputs is not None:
            return cls(task, labels, [], {}, None, read_outputs(task.prompted.outputs))
        shown = _shown(examples, choice["examples"], labels, task.seed)
        return cls(task, labels, [(e.text, e.target) for e in shown], endpoint, out / SAID, used=len(shown))

    @property
    def gpu(self) -> str:
        """The GPU on which the server that was started here computes, which takes one that it finds; else ""."""
        return torch.cuda.get_device_name() if self.endpoint.get("process") and torch.cuda.is_available() else ""

    # ------------------------------------------------------------------------------------------------- answering

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        if self.recorded is not None:
            return [self._recall(text) for text in texts]
        import httpx2

        key = os.environ.get(self.task.prompted.key_variable, "")
        headers = {"Authorization": f"Bearer {key}"} if key and not self.endpoint.get("process") else {}
        with httpx2.Client(headers=headers, timeout=httpx2.Timeout(30, read=600), trust_env=False) as client:
            return [self._ask(client, text) for text in texts]

    def _recall(self, text: str) -> Answer:
        line = self.recorded.get(normal(text))
        if line is None:
            raise UserError(f"{self.task.prompted.outputs}: has no output for the text {text[:60]!r}")
        found = readable(self.task, str(line["output"]))
        tokens = self._tokens(line, ("input_tokens", "output_tokens"), str(self.task.prompted.outputs))
        return Answer(found, 1.0, *tokens, float(line["milliseconds"]), line.get("stop_reason"))

    def _tokens(self, given: dict[str, Any], names: tuple[str, str], where: str) -> tuple[int, int]:
        """Tokens read and written, 0 where nobody told; a UserError where the cost is reckoned with them."""
        costs = self.task.costs
        for name, price in zip(names, (costs.api_input_mtok, costs.api_output_mtok), strict=True):
            if price and given.get(name) is None and not self.endpoint.get("process"):
                raise UserError(f"{where}: says no {name}, but `costs` has a price of them")
        read, written = (int(given.get(name) or 0) for name in names)
        return read, written

    def _ask(self, client: Any, text: str) -> Answer:
        body = self.body(text)
        name = {**body, "model": self.task.prompted.model or str(self.task.prompted.folder)}
        key = hashlib.sha256(json.dumps(name, sort_keys=True).encode()).hexdigest()
        if key not in self._known:
            began, before = time.perf_counter(), counted(bool(self.gpu)) if self.endpoint.get("process") else {}
            reply = _post(client, f"{self.endpoint['url']}/chat/completions", body, self.task.prompted)
            took = 1000 * (time.perf_counter() - began)
            line = {"key": key, "reply": reply, "milliseconds": took, "joules": since(before)}
            if self.said is not None:
                with open(self.said, "ab") as handle:
                    handle.write(encode_line(line))
            self._known[key] = line
        return self._read(self._known[key])

    def _read(self, line: dict[str, Any]) -> Answer:
        choice = line["reply"]["choices"][0]
        content = choice["message"].get("content") or ""
        usage = line["reply"].get("usage") or {}
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        confidence = math.exp(math.fsum(token["logprob"] for token in logprobs)) if logprobs else 1.0
        return Answer(
            self._extract(content),
            min(1.0, confidence),
            *self._tokens(usage, ("prompt_tokens", "completion_tokens"), str(self.endpoint.get("url"))),
            float(line["milliseconds"]),
            choice.get("finish_reason"),
            line.get("joules"),
        )

    def _extract(self, content: str) -> str | None:
        if self.task.kind == "generation":
            return readable(self.task, content)
        try:
            value = json.loads(content)
        except ValueError:
            return None
        if self.task.kind == "classification":
            label = value.get("label") if isinstance(value, dict) else None
            return label if label in self.labels else None
        if self.task.kind == "multi-label":
            value = value.get("labels") if isinstance(value, dict) else None
        return readable(self.task, json.dumps(value, ensure_ascii=False))

    # --------------------------------------------------------------------------------------------------- prompts

    def body(self, text: str) -> dict[str, Any]:
        """The request: instructions, examples as earlier turns, and the text; the reply is held to a JSON schema."""
        messages = [{"role": "system", "content": self._instructions()}]
        for shown, target in self.shown:
            messages += [
                {"role": "user", "content": self._cut(shown)},
                {"role": "assistant", "content": self._reply(target)},
            ]
        messages.append({"role": "user", "content": self._cut(text)})
        body: dict[str, Any] = {
            "model": self.endpoint.get("model"),
            "messages": messages,
            "temperature": 0,
            "max_tokens": LONGEST_LABEL if self.task.kind == "classification" else LONGEST_ANSWER,
            "logprobs": True,
        }
        if schema := self._schema():
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        return body

    def _cut(self, text: str) -> str:
        most = self.task.prompted.most_characters
        return text if len(text) <= most else text[: most // 2] + " … " + text[-(most // 2) :]

    def _instructions(self) -> str:
        if self.task.prompted.instructions is not None:
            return self.task.prompted.instructions
        if self.labels is not None:
            return f"Classify the text. Answer with one of these labels: {', '.join(self.labels)}."
        if self.task.kind == "extraction":
            names = ", ".join(self.task.schema["properties"])
            return f"Extract from the text, as JSON: {names}. Copy what stands in the text; leave out what does not."
        return "Answer as in the examples."

    def _reply(self, target: str) -> str:
        if self.task.kind == "classification":
            return json.dumps({"label": target}, ensure_ascii=False)
        return json.dumps({"labels": json.loads(target)}) if self.task.kind == "multi-label" else target

    def _schema(self) -> dict[str, Any] | None:
        if self.task.kind == "generation":
            return None
        if self.task.kind == "extraction":
            properties = self.task.schema["properties"]
            return {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        if self.task.kind == "multi-label":
            properties = {"labels": {"type": "array", "items": {"type": "string"}}}
        else:
            properties = {"label": {"type": "string", "enum": self.labels}}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    # ---------------------------------------------------------------------------------------------------- keeping

    def facts(self) -> dict[str, Any]:
        """What the cost is reckoned with: ours to run, or charged by tokens."""
        process = self.endpoint.get("process")
        hosted = process is not None
        return {
            "hosted": hosted,
            "gpu": self.gpu,
            "labels": self.used,
            "memory_mb": peak_memory(process) if hosted else 0.0,
            "cold_start_s": float(self.endpoint.get("cold_start_s", 0.0)),
        }

    def save(self, folder: Path) -> None:
        """The prompt; the model itself stays where it is."""
        task = config.to_dict(self.task)
        keep = {name: task[name] for name in ("data", "kind", "schema", "scorer", "fold_case", "prompted")}
        write_kind(folder, "prompted", task=keep, labels=self.labels, shown=[list(pair) for pair in self.shown])

    @classmethod
    def load(cls, folder: Path) -> Asked:
        """Asks at the address that the task names; for a model folder, at http://127.0.0.1:8000/v1."""
        kept = read_json(folder / RUNG)
        task = config.from_dict(Task, kept["task"], where=str(folder / RUNG))
        prompted = task.prompted
        if prompted.outputs is not None:
            return cls(task, kept["labels"], [], {}, None, read_outputs(prompted.outputs))
        endpoint = {"url": (prompted.address or "http://127.0.0.1:8000/v1").rstrip("/")}
        endpoint["model"] = prompted.model or (prompted.folder.name if prompted.folder else "")
        return cls(task, kept["labels"], [tuple(pair) for pair in kept["shown"]], endpoint, None)


def _shown(examples: Sequence[Example], count: int, labels: list[str] | None, seed: int) -> list[Example]:
    """Examples for a prompt, short ones, of as many labels as there is room for."""
    draw = random.Random(seed)
    pool = sorted((e for e in examples if 10 <= len(e.text) <= 300), key=lambda e: e.row) or list(examples)
    draw.shuffle(pool)
    if labels is None:
        return pool[:count]
    by_label = {label: [e for e in pool if e.target == label] for label in labels}
    chosen: list[Example] = []
    while len(chosen) < count and any(by_label.values()):
        for label in labels:
            if by_label[label] and len(chosen) < count:
                chosen.append(by_label[label].pop())
    return chosen


def _post(client: Any, url: str, body: dict[str, Any], prompted: Prompted) -> dict[str, Any]:
    """The reply; waits and asks again where the address is busy, down for a moment, or limits the rate.

    Raises:
        UserError: the address refuses the request. RunError: it stays away; what it said until then is kept.
    """
    import httpx2

    wait, trouble = 1.0, ""
    for attempt in range(prompted.retries + 1):
        if attempt:
            time.sleep(wait)
        try:
            response = client.post(url, json=body)
        except httpx2.HTTPError as error:
            trouble, wait = str(error) or type(error).__name__, min(_LONGEST_WAIT, 2.0**attempt)
            continue
        if response.status_code == 200:
            try:
                reply = response.json()
                _ = reply["choices"][0]["message"]
            except (ValueError, KeyError, IndexError, TypeError):
                raise RunError(f"{url}: answered with something that is no chat completion") from None
            return reply
        trouble = f"{response.status_code}: {response.text[:200]}"
        if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
            raise UserError(f"{url}: refused the request ({trouble})")
        asked = response.headers.get("retry-after", "")
        wait = min(_LONGEST_WAIT, float(asked) if asked.replace(".", "", 1).isdigit() else 2.0**attempt)
    raise RunError(
        f"{url}: no answer after {prompted.retries + 1} tries ({trouble}); answers so far are kept, --resume goes on"
    )


def read_outputs(path: Path) -> dict[str, dict[str, Any]]:
    """Recorded outputs by their text; a `UserError` where a line lacks a text, its output or how long it took."""
    found = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not isinstance(line.get("text"), str) or "output" not in line or not line.get("milliseconds"):
            raise UserError(f"{path}:{number}: expected text, output and milliseconds")
        found[normal(line["text"])] = line
    return found
