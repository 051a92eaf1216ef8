"""What a step consists of."""

from __future__ import annotations

from inazuma.ops.pool import PAGE
from inazuma.serve.pages import Pages
from inazuma.serve.request import Request, Sampling
from inazuma.serve.scheduler import LEAST, MOST, STEP, Scheduler, Text


def scheduler(pages: int = 400, fixed_s: float = 0.0) -> Scheduler:
    return Scheduler(Pages(pages), 16_384, most_running=64, most_waiting=64, fixed_s=fixed_s)


def text(prompt: int, new: int = 8, **changes) -> Text:
    return Text(Request(list(range(prompt)), new, Sampling(temperature=0), **changes), 50_000, lambda event: None)


def run(scheduler: Scheduler, cost: float, fixed_s: float = 0.0) -> list[tuple[Text, int]]:
    """A step in which a token of a prompt takes `cost` seconds, and all else `fixed_s`."""
    chosen = scheduler.next()
    writing = sum(each.writes for each, _ in chosen)
    for each, count in chosen:
        ends = count == each.pending
        scheduler.advance(each, count)
        if ends:
            each.tokens.append(0)
    scheduler.learn(chosen, writing, fixed_s + cost * sum(count for _, count in chosen))
    return chosen


def test_pieces_become_as_long_as_a_step_may_take():
    plan = scheduler()
    plan.waiting.append(text(9_000))
    for _ in range(12):
        [(_, count)] = run(plan, cost=STEP / 80)
    assert 70 <= count <= 90
    for _ in range(30):
        [(_, count)] = run(plan, cost=STEP)
    assert count == LEAST


def test_what_a_step_takes_anyway_does_not_make_pieces_short():
    """As on a GPU: a step of sixteen tokens takes longer than a step should, and one of a thousand hardly more."""
    plan = scheduler(fixed_s=1.2 * STEP)
    plan.waiting.append(text(9_000))
    counts = [run(plan, cost=STEP / 2000, fixed_s=1.2 * STEP)[0][1] for _ in range(6)]
    assert sum(counts) >= 5_000 and counts[-1] >= 1_500
    slow = scheduler(fixed_s=1.2 * STEP)
    slow.waiting.append(text(9_000))
    counts = [run(slow, cost=STEP / 50, fixed_s=1.2 * STEP)[0][1] for _ in range(12)]
    assert 50 <= counts[-1] <= 75, "what it takes to read is heeded all the same"


def test_a_short_prompt_does_not_wait_for_a_long_one():
    plan = scheduler()
    long = text(9_000)
    plan.waiting.append(long)
    for _ in range(5):
        run(plan, cost=STEP / 80)
    short = text(40)
    plan.waiting.append(short)
    chosen = dict((id(each), count) for each, count in run(plan, cost=STEP / 80))
    assert chosen[id(short)] == 40
    assert run(plan, cost=STEP / 80)[0][0] is short, "now it is written, in every step"


def test_a_long_prompt_does_not_wait_for_ever(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("inazuma.serve.scheduler.time.monotonic", lambda: clock[0])
    plan = scheduler()
    long = text(2_000)
    plan.waiting.append(long)
    for _ in range(400):
        clock[0] += STEP
        plan.waiting.append(text(80))
        for each, _ in run(plan, cost=STEP / 80):
            if each.new >= 2:
                plan.remove(each)
        if long.read >= 2_000:
            break
    assert long.read >= 2_000


def test_the_youngest_gives_up_its_pages_and_comes_first_again():
    plan = scheduler(pages=4)
    old, young = text(PAGE, new=100), text(PAGE + 1, new=50)
    young.arrived = old.arrived + 1
    plan.waiting.extend([old, young])
    for _ in range(60):
        run(plan, cost=STEP / MOST)
    for _ in range(20):
        run(plan, cost=STEP / MOST)
    assert old in plan.running and old.new >= 65
    assert young.new > 0 and (young in plan.waiting or young.read > 0)


def test_nobody_is_lost_when_pages_run_out():
    plan = scheduler(pages=6)
    texts = [text(30 + 10 * i, new=60) for i in range(8)]
    plan.waiting.extend(texts)
    for _ in range(3_000):
        for each, _ in run(plan, cost=STEP / MOST):
            if each.new >= 60 and each in plan.running:
                plan.remove(each)
        if not plan.running and not plan.waiting:
            break
    assert all(each.new >= 60 for each in texts)
    assert plan.pages.available == 6
