"""The terminal's side of a chat: questions in, answers out as they come."""

from __future__ import annotations

import contextlib
import os
import readline
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape

from inazuma.errors import RunError, UserError
from inazuma.serve.chat import Answer, Conversation

HELP = """\
/new                forget the conversation       /retry          ask the last question again
/system TEXT        set the system message        /set NAME X     temperature, top_p, top_k, max_tokens, seed
/save FILE          write the conversation        /load FILE      go on with a written one
/stats              what it has come to           /exit           leave (or Ctrl-D)
A line that ends with \\ goes on in the next; \"\"\" begins and ends several lines. Ctrl-C stops an answer."""


class Terminal:
    """Asks until the person leaves."""

    def __init__(self, conversation: Conversation, context: int | None, console: Console):
        self.conversation, self.context, self.console = conversation, context, console
        self.last: Answer | None = None

    def run(self) -> None:
        self.console.print(f"[bold]{escape(self.conversation.model)}[/bold]  [dim]/help, Ctrl-D leaves[/dim]")
        interrupted = False
        with _history():
            while True:
                try:
                    question = self.read()
                except EOFError:
                    self.console.print()
                    return
                except KeyboardInterrupt:
                    if interrupted:
                        self.console.print()
                        return
                    self.console.print("\n[dim]Ctrl-C again or Ctrl-D leaves[/dim]")
                    interrupted = True
                    continue
                interrupted = False
                if question.strip() in ("/exit", "/quit"):
                    return
                try:
                    self.take(question)
                except (UserError, RunError, OSError) as error:
                    self.console.print(f"[red]{escape(str(error))}[/red]")

    @staticmethod
    def read() -> str:
        """A question, of several lines where they say so."""
        line = input("> ")
        if line.strip().startswith('"""'):
            lines = [line.strip().removeprefix('"""')]
            while not lines[-1].rstrip().endswith('"""'):
                lines.append(input("… "))
            lines[-1] = lines[-1].rstrip().removesuffix('"""')
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("… "))
        return "\n".join(lines)

    def take(self, question: str) -> None:
        """Does what a line says."""
        command, _, rest = question.strip().partition(" ")
        conversation, rest = self.conversation, rest.strip()
        if not command.startswith("/"):
            if question.strip():
                self.answer(question)
        elif command == "/help":
            self.console.print(escape(HELP))
        elif command == "/new":
            conversation.messages = [message for message in conversation.messages if message["role"] == "system"]
        elif command == "/system":
            conversation.set_system(rest)
        elif command == "/retry":
            question = conversation.take_back()
            if question is None:
                raise UserError("/retry: nothing was asked yet")
            self.answer(question)
        elif command == "/set":
            name, _, value = rest.partition(" ")
            conversation.set(name, value.strip())
        elif command in ("/save", "/save!", "/load"):
            if not rest:
                raise UserError(f"{command}: name a file")
            path = Path(rest).expanduser()
            conversation.load(path) if command == "/load" else conversation.save(path, force=command == "/save!")
            self.console.print(f"[dim]{len(conversation.messages)} messages[/dim]")
        elif command == "/stats":
            self.console.print(f"[dim]{len(conversation.messages)} messages; {self.figures()}[/dim]")
        else:
            raise UserError(f"{command}: is not known; /help lists the commands")

    def answer(self, question: str) -> None:
        """Shows an answer as it comes; Ctrl-C stops it."""
        shown = Stream(self.console)
        answer = Answer()
        asking = self.conversation.ask(question)
        try:
            with _noticed() as interrupted:
                for answer in asking:
                    shown.update(answer.text or (f"*{answer.reasoning}*" if answer.reasoning else ""))
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            asking.close()
        finally:
            shown.close()
        self.last = answer
        self.console.print(f"[dim]{self.figures()}[/dim]")

    def figures(self) -> str:
        """Of the last answer."""
        answer = self.last
        if answer is None:
            return "nothing was answered yet"
        if answer.stopped:
            return "stopped"
        of = f" of {self.context:,}" if self.context else ""
        speed = f", {answer.speed:.0f} tokens a second" if answer.speed else ""
        first = f", the first after {answer.first_s:.2f} s" if answer.first_s else ""
        return f"{answer.tokens} tokens{speed}{first}; context {answer.context:,}{of}"


class Stream:
    """Markdown that grows: blocks that are complete are printed for good, only the last one is drawn anew. A display
    that is taller than the screen would leave copies of itself behind."""

    def __init__(self, console: Console):
        self._console, self._done = console, 0
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible", transient=True)
        self._tail = ""
        self._live.start()

    def update(self, text: str) -> None:
        end = _complete(text, self._done)
        if end > self._done:
            self._live.update("", refresh=True)
            self._console.print(Markdown(text[self._done : end]))
            self._done = end
        self._tail = text[self._done :]
        self._live.update(Markdown(self._tail), refresh=True)

    def close(self) -> None:
        self._live.stop()
        if self._tail.strip():
            self._console.print(Markdown(self._tail))


def _complete(text: str, start: int) -> int:
    """Where the last complete block of `text` from `start` on ends: at an empty line outside of fenced code."""
    end, at, fenced = start, start, False
    for line in text[start:].splitlines(keepends=True):
        at += len(line)
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not line.strip() and line.endswith("\n") and not fenced:
            end = at
    return end


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """What was typed before, in a file that only its owner reads."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    path = state / "inazuma" / "chat_history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
            path.chmod(0o600)


def pipe(conversation: Conversation) -> None:
    """Answers what standard input says, and writes nothing but the answer."""
    text, answer = "", Answer()
    for answer in conversation.ask(sys.stdin.read().strip("\n")):
        sys.stdout.write(answer.text[len(text) :])
        sys.stdout.flush()
        text = answer.text
    print()


@contextlib.contextmanager
def _noticed() -> Iterator[Callable[[], bool]]:
    """Ctrl-C raises KeyboardInterrupt as ever, and what is yielded tells that it was pressed: raised inside of a
    destructor or of a callback from C, Python only prints it."""
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
