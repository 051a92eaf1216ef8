"""Which texts are read and continued in the next step, and how much of each: continuous batching.

Texts that are being written get a token in every step. What time is left in it goes to reading prompts, short ones
first, in pieces: a long prompt makes the others wait for one piece, not for all of it. How long a step may take is
fixed; how many tokens that is, is learned from the steps before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from inazuma.ops.pool import PAGE
from inazuma.serve.pages import ROOT, Pages
from inazuma.serve.request import Busy, Request, TooLong
from inazuma.serve.sampler import Sampler

STEP = 0.03
"""Seconds that a step should take at most: the wait that a prompt being read means for a short one."""

LEAST, MOST = 16, 512
"""Tokens of prompts that are read in a step, if any are."""

LEARNING = 0.3
"""How much of an estimate the last step replaces."""


class Text:
    """A text on its way: the prompt and what was written, and how much of both is in the caches."""

    def __init__(self, request: Request, vocabulary: int, deliver: Callable):
        self.request, self.deliver = request, deliver
        self.tokens = list(request.prompt)
        self.read = 0
        """Tokens in the caches."""
        self.pages: list[int] = []
        self.names = [ROOT]
        """Of the pages that are full, behind the beginning's."""
        self.sampler = Sampler(request, vocabulary)
        self.draft: int | None = None
        """A guess at the token behind `tokens`."""
        self.cached = self.drafted = self.accepted = 0
        self.prompt_logprobs: list = []
        self.hidden = None
        self.cost: float | None = None
        """Seconds to read a token of it, at the length it has."""
        self.arrived = time.monotonic()
        self.first_token: float | None = None

    @property
    def new(self) -> int:
        """Tokens written."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def pending(self) -> int:
        """Tokens known and not yet read; 1 while the text is being written."""
        return len(self.tokens) - self.read

    @property
    def writes(self) -> bool:
        return self.pending == 1 and self.request.max_tokens > 0

    @property
    def shareable(self) -> int:
        """How many tokens' results nobody asks for, so that they need not be read where the caches have them; what
        follows the last one must be computed, so that one never counts."""
        request = self.request
        if request.hidden:
            return 0
        if request.prompt_logprobs is not None and not self.new:
            return min(request.prompt_logprobs_start, len(self.tokens) - 1)
        return len(self.tokens) - 1


class Scheduler:
    """Waiting and running texts and the pages that they have. The engine's thread alone calls it."""

    def __init__(self, pages: Pages, context: int, *, most_running: int, most_waiting: int, fixed_s: float = 0.0):
        self.pages, self.context = pages, context
        self._fixed_s, self._most = fixed_s, MOST if fixed_s == 0 else 8 * MOST
        """What any step that reads prompts takes, of few tokens too, and how many it reads at most. A GPU is done with
        a few hundred tokens before Python has asked for all its kernels."""
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []
        self._most_running, self._most_waiting = most_running, most_waiting
        self._writing_s = 0.0
        """What a step without prompts takes."""
        self._cost = STEP / 128
        """Seconds to read a token at the beginning of a prompt."""

    def check(self, request: Request, waiting: int) -> None:
        """Refuses what can never run, and what would have to wait behind too many."""
        tokens = len(request.prompt) + request.max_tokens
        if not request.prompt:
            raise TooLong("the prompt is empty")
        if tokens > self.context:
            raise TooLong(
                f"this model's maximum context length is {self.context} tokens: the prompt has {len(request.prompt)}, "
                f"and {request.max_tokens} new ones were asked for"
            )
        if needed(tokens) > self.pages.total:
            raise TooLong(
                f"{tokens} tokens do not fit into the cache's {self.pages.total * PAGE}; ask for fewer new tokens, or "
                "give the cache more memory"
            )
        if waiting >= self._most_waiting:
            raise Busy(f"{waiting} requests are waiting already", self._seconds_until_room())

    def _seconds_until_room(self) -> float:
        left = [sequence.request.max_tokens - sequence.new for sequence in self.running]
        return min(60.0, max(1.0, min(left, default=0) * self._writing_s))

    # ------------------------------------------------------------------------------------------------------------------
    # What comes next
    # ------------------------------------------------------------------------------------------------------------------

    def next(self) -> list[tuple[Text, int]]:
        """The texts of the next step, and how many of their pending tokens each reads; pages are there for them."""
        self._admit()
        chosen = [(sequence, 1) for sequence in self.running if sequence.writes]
        reading = [sequence for sequence in self.running if not sequence.writes]
        reading.sort(key=self._urgency)
        left = STEP - (self._writing_s if chosen else 0.0) - self._fixed_s
        # Where every step takes that long, one may take twice as long: less would be to read hardly anything.
        left = max(left, self._fixed_s)
        budget = self._most
        for sequence in reading:
            cost = sequence.cost or self._cost
            count = min(sequence.pending, budget, max(int(left / cost), LEAST if budget == self._most else 0))
            if count <= 0:
                break
            chosen.append((sequence, count))
            left -= count * cost
            budget -= count
        return self._with_pages(chosen)

    @staticmethod
    def _urgency(sequence: Text) -> float:
        """Short ones first; long ones gain on them while they wait, so that none waits for ever."""
        return sequence.pending / (0.1 + time.monotonic() - sequence.arrived)

    def _admit(self) -> None:
        """Lets texts begin while there is room for all that they have and one page more for each that runs."""
        while self.waiting and len(self.running) < self._most_running:
            sequence = self.waiting[0]
            room = self.pages.available - len(self.running)
            if self.running and needed(len(sequence.tokens)) + 1 > room:
                return
            sequence.pages, sequence.names = self.pages.find(sequence.tokens[: sequence.shareable])
            sequence.read = len(sequence.pages) * PAGE
            self.waiting.popleft()
            if not sequence.new:
                sequence.cached = sequence.read
            self.running.append(sequence)

    def _with_pages(self, chosen: list[tuple[Text, int]]) -> list[tuple[Text, int]]:
        """Takes the pages that the step writes to; where there are none left, the youngest text gives up its own and
        waits again. (What it has written stays, and reading it again gives the same numbers.)"""
        kept: list[tuple[Text, int]] = []
        for sequence, count in chosen:
            if sequence not in self.running:  # it has just given up its pages
                continue
            # A guess is written behind what is known.
            ahead = 1 if sequence.draft is not None else 0
            while len(sequence.pages) < needed(sequence.read + count + ahead):
                page = self.pages.take()
                if page is not None:
                    sequence.pages.append(page)
                    continue
                victim = max(self.running, key=lambda other: other.arrived)
                self._preempt(victim)
                kept = [entry for entry in kept if entry[0] is not victim]
                if victim is sequence:
                    break
            else:
                kept.append((sequence, count))
        return kept

    def _preempt(self, sequence: Text) -> None:
        self.running.remove(sequence)
        self.pages.release(sequence.pages)
        sequence.pages, sequence.read, sequence.draft, sequence.names = [], 0, None, [ROOT]
        if not sequence.new:  # the prompt is read anew, and so is what was asked about it
            sequence.prompt_logprobs, sequence.hidden = [], None
        self.waiting.appendleft(sequence)

    # ------------------------------------------------------------------------------------------------------------------
    # What has been
    # ------------------------------------------------------------------------------------------------------------------

    def advance(self, sequence: Text, tokens: int) -> None:
        """So many more of the text's tokens are in the caches."""
        sequence.read += tokens
        self._publish(sequence)

    def _publish(self, sequence: Text) -> None:
        for number in range(len(sequence.names) - 1, sequence.read // PAGE):
            tokens = sequence.tokens[number * PAGE : (number + 1) * PAGE]
            sequence.names.append(self.pages.publish(sequence.pages[number], sequence.names[-1], tokens))

    def remove(self, sequence: Text) -> None:
        """The text has ended."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pages.release(sequence.pages)
            sequence.pages = []
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def learn(self, step: Sequence[tuple[Text, int]], writing: int, seconds: float) -> None:
        """How long a step took in which `writing` texts were written and the others read so many tokens."""
        read = sum(count for _, count in step) - writing
        if not read:
            self._writing_s += LEARNING * (seconds - self._writing_s)
            return
        if read < LEAST:
            return
        cost = max(seconds - (self._writing_s if writing else 0.0) - self._fixed_s, 0.1 * seconds) / read
        for sequence, count in step:
            if count > 1:
                sequence.cost = cost if sequence.cost is None else sequence.cost + LEARNING * (cost - sequence.cost)
                if sequence.read <= 2 * MOST:
                    self._cost += LEARNING * (cost - self._cost)


def needed(tokens: int) -> int:
    """Pages for so many tokens."""
    return -(-tokens // PAGE)
