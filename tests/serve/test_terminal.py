"""`inazuma chat` as a person meets it: in a terminal, and in a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from rich.markdown import Markdown

from inazuma.errors import UserError
from inazuma.serve.chat import Answer, Conversation
from inazuma.serve.terminal import Stream, Terminal
from tests.serve.conftest import NAME


class Person:
    """A program in a terminal, and what it showed."""

    def __init__(self, arguments: list[str], home):
        self.master, slave = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(home), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inazuma", "chat", *arguments],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self._bytes = b""  # a character may come in parts

    @property
    def seen(self) -> str:
        return self._bytes.decode(errors="replace")

    def type(self, text: str) -> None:
        self._bytes = b""
        os.write(self.master, text.encode())

    def wait(self, text: str, seconds: float = 20) -> str:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self._bytes += os.read(self.master, 65536)
                except OSError:  # the other end was closed
                    assert text in self.seen, self.seen
        return self.seen

    def leave(self) -> int:
        """By Ctrl-D, at the prompt: before it the terminal would take it for something else."""
        end = time.monotonic() + 20
        while not (self.seen.endswith("> ") and not select.select([self.master], [], [], 0.3)[0]):
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self._bytes += os.read(self.master, 65536)
        self.type("\x04")
        return self.process.wait(10)


@pytest.fixture
def person(live, tmp_path):
    one = Person([live.url, "--max-tokens", "12", "--temperature", "0"], tmp_path)
    yield one
    one.process.kill()
    os.close(one.master)


def test_a_conversation(live, person, tmp_path):
    person.wait("> ")
    person.type("the capital\r")
    person.wait("tokens")
    person.type('"""one\r')
    person.wait("… ")
    person.type('two"""\r')
    person.wait("context")
    file = tmp_path / "talk.json"
    person.type(f"/save {file}\r")
    person.wait("4 messages")
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2
    assert saved["messages"][2]["content"] == "one\ntwo" and saved["model"] == NAME
    person.type(f"/save {file}\r")
    person.wait("exists")
    person.type("/new\r")
    person.type("/stats\r")
    person.wait("0 messages")
    person.type(f"/load {file}\r")
    person.wait("4 messages")
    person.type("/nonsense\r")
    person.wait("is not known")
    assert person.leave() == 0
    history = tmp_path / "inazuma/chat_history"
    assert "the capital" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(live, person):
    live.engine.step_seconds = 0.1
    live.engine.say = live.tokenizer.encode("yes").ids * 150  # it must not end by itself
    person.wait("> ")
    person.type("/set max_tokens 200\r")
    person.wait("> ")
    before = live.engine.metrics()["requests_cancelled"]
    person.type("the\r")
    person.wait("yes")
    os.killpg(person.process.pid, signal.SIGINT)
    person.wait("stopped")
    end = time.monotonic() + 5
    while live.engine.metrics()["requests_cancelled"] == before:
        assert time.monotonic() < end, "the server goes on"
        time.sleep(0.05)
    live.engine.step_seconds, live.engine.say = 0.0, live.tokenizer.encode("yes").ids * 20
    person.type("/set max_tokens 5\r")
    person.wait("> ")
    person.type("the\r")
    person.wait("5 tokens")
    live.engine.say = []
    assert person.leave() == 0


def test_a_pipe_gets_the_answer_and_nothing_else(live):
    command = [sys.executable, "-m", "inazuma", "chat", live.url, "--temperature", "0", "--max-tokens", "9"]
    told = subprocess.run(command, input="the capital\n", capture_output=True, text=True, timeout=60)
    message = {"role": "user", "content": "the capital"}
    [choice] = live.client().chat.completions.create(
        model=NAME, messages=[message], temperature=0, max_tokens=9
    ).choices  # fmt: skip
    assert told.returncode == 0 and told.stdout == choice.message.content + "\n" and not told.stderr


def test_what_is_wrong_is_one_line(live, tmp_path):
    command = [sys.executable, "-m", "inazuma", "chat"]
    for arguments, message in (
        (["http://127.0.0.1:9"], "127.0.0.1:9"),
        ([str(tmp_path / "none")], "no such model folder"),
        ([live.url, "--name", "other"], NAME),
    ):
        told = subprocess.run([*command, *arguments], input="the", capture_output=True, text=True, timeout=60)
        assert told.returncode in (1, 2) and message in told.stderr and told.stderr.count("\n") == 1, told.stderr


def test_a_refused_question_changes_nothing(live):
    talk = Conversation(live.url, NAME, messages=[{"role": "system", "content": "x"}], settings={"top_p": 7.0})
    with pytest.raises(Exception, match="top_p"):
        list(talk.ask("the"))
    assert talk.messages == [{"role": "system", "content": "x"}]
    with pytest.raises(UserError, match="not a number"):
        talk.set("seed", "x")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"messages": [1]}', '{"messages": [{"role": "user"}]}', '{"messages": [], "settings": 1}']
)
def test_a_file_that_is_no_conversation_changes_nothing(content, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text(content)
    talk = Conversation("http://127.0.0.1:9", NAME, settings={"seed": 1})
    with pytest.raises(UserError, match="is no saved conversation"):
        talk.load(file)
    assert talk.messages == [] and talk.settings == {"seed": 1}


def test_a_file_may_say_more_than_the_api_takes(tmp_path):
    file = tmp_path / "talk.json"
    file.write_text('{"messages": [{"role": "user", "content": "x", "at": 3}], "settings": null}')
    talk = Conversation("http://127.0.0.1:9", NAME, settings={"seed": 1})
    talk.load(file)
    assert talk.messages == [{"role": "user", "content": "x"}] and talk.settings == {}


def test_long_answers_are_shown_once():
    text = "# Title\n\n" + "".join(f"Paragraph number {i}.\n\n" for i in range(80)) + "```\ncode\n\nmore\n```\n\nend"
    console = Console(width=60, height=10, force_terminal=True, file=io.StringIO())
    printed = []
    console.print = lambda shown: printed.append(shown.markup) if isinstance(shown, Markdown) else None
    shown = Stream(console)
    for end in range(0, len(text), 7):
        shown.update(text[:end])
        assert len(shown._tail) < 60, "only the last block is drawn anew"
    shown.update(text)
    shown.close()
    assert "".join(printed) == text and len(printed) > 80
    assert "code\n\nmore" in printed[-2], "fenced code is one block"


def test_a_ctrl_c_that_python_swallows_stops_the_answer_all_the_same():
    class Writing:
        model = "any"

        def ask(self, question):
            for count in range(1, 100):
                if count == 3:
                    try:
                        os.kill(os.getpid(), signal.SIGINT)
                        time.sleep(1)
                    except KeyboardInterrupt:
                        pass  # as in a destructor
                yield Answer(text="word " * count)

    before = signal.getsignal(signal.SIGINT)
    terminal = Terminal(Writing(), None, Console(file=io.StringIO()))
    terminal.figures = lambda: ""
    terminal.answer("?")
    assert terminal.last.text == "word " * 3
    assert signal.getsignal(signal.SIGINT) is before
