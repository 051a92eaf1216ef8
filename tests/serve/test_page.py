"""The chat page, in a browser, against a real server. After every test: nothing was asked of another origin, nothing
was kept back by the page's policy, and no script failed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest

from inazuma.serve.security import Security
from tests.serve.conftest import serving, until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    # Not for the whole session: while it is open, this thread has a running event loop.
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser) -> Iterator[sync_api.BrowserContext]:
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(10_000)
    asked, wrong = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    yield context
    context.close()
    assert len({re.match(r"https?://[^/]*", url)[0] for url in asked}) == 1
    assert wrong == []


@pytest.fixture
def page(context, live) -> sync_api.Page:
    page = context.new_page()
    page.goto(live.url)
    expect(page.locator("#model")).to_have_text("org/tiny")
    return page


def ask(page: sync_api.Page, text: str, *, wait: bool = True) -> None:
    answers = page.locator(".assistant").count()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    if wait:
        expect(page.locator(".assistant:not(.growing)")).to_have_count(answers + 1)


def body(page: sync_api.Page, role: str = "assistant", place: int = -1) -> sync_api.Locator:
    return page.locator(f".{role} .body").nth(place)


def sent(live) -> str:
    return live.tokenizer.decode(live.engine.requests[-1].prompt, skip_special_tokens=False)


def stream(*deltas: dict) -> str:
    """A streamed answer."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def refuse(route: sync_api.Route, status: int, code: str, wait: str) -> None:
    error = {"message": "not now", "type": "error", "param": None, "code": code}
    route.fulfill(status=status, json={"error": error}, headers={"Retry-After": wait})


def test_an_answer_is_streamed_and_measured(page, live):
    live.says("the capital of France is Paris; yes")
    live.engine.step_seconds = 0.1
    ask(page, "the capital?", wait=False)
    expect(body(page)).to_contain_text("the capital")
    expect(page.locator(".growing")).to_have_count(1)
    assert page.locator("#announce").text_content() == ""
    expect(page.locator(".stats")).to_contain_text(re.compile(r"tokens/s · first token after .* of 1,000 tokens of cont"))
    assert body(page).text_content() == "the capital of France is Paris; yes"
    # Whoever listens hears the answer once, when it is whole.
    assert page.locator("#announce").text_content() == "Answer: the capital of France is Paris; yes"
    speed = float(re.search(r"([\d.]+) tokens/s", page.locator(".stats").text_content())[1])
    assert 2 < speed < 10


def test_stop_keeps_what_came_and_ends_the_work(page, live):
    live.says("yes no " * 100)
    live.engine.step_seconds = 0.05
    for stop in (lambda: page.keyboard.press("Escape"), page.get_by_role("button", name="Stop").click):
        ask(page, "go on", wait=False)
        expect(body(page)).to_contain_text("yes no")
        cancelled = live.engine.counts["cancelled"]
        stop()
        expect(page.locator(".note").last).to_have_text("Stopped.")
        until(lambda before=cancelled: live.engine.counts["cancelled"] == before + 1)
        assert "yes no" in body(page).text_content()
    assert "<|im_start|>assistant\nyes no" in sent(live)


def test_edit_asks_again_from_there(page, live):
    live.says("Paris")
    ask(page, "first")
    ask(page, "second")
    live.says("Tokyo")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit the message").fill("changed")
    page.keyboard.press("Enter")
    expect(body(page)).to_have_text("Tokyo")
    assert page.locator(".message").count() == 2
    assert sent(live) == "<|im_start|>user\nchanged<|im_end|>\n<|im_start|>assistant\n"


def test_retry_replaces_the_answer(page, live):
    live.says("Paris")
    ask(page, "which?")
    first = sent(live)
    live.says("Tokyo")
    page.get_by_role("button", name="Retry").click()
    expect(body(page)).to_have_text("Tokyo")
    assert page.locator(".message").count() == 2
    assert sent(live) == first


def test_conversations_survive_a_reload(page, live):
    live.says("Paris")
    ask(page, "of France?")
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".message").count() == 0
    ask(page, "of Japan?")
    page.get_by_role("button", name="Rename of Japan?").click()
    page.get_by_label("Title").fill("the east")
    page.keyboard.press("Enter")
    page.reload()
    titles = page.locator("#conversations li > button:first-child")
    assert titles.all_text_contents() == ["the east", "of France?"]
    titles.last.click()
    expect(body(page, "user")).to_have_text("of France?")
    expect(body(page)).to_have_text("Paris")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete of France?").click()
    page.reload()
    assert titles.all_text_contents() == ["the east"]


def test_settings_reach_the_server(page, live):
    page.get_by_role("button", name="Settings").click()
    values = {"System prompt": "be brief", "Temperature": "0.5", "Top p": "0.9", "Most tokens": "3", "Seed": "7"}
    for label, value in values.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Save").click()
    live.engine.say = live.ids("yes no yes no")
    ask(page, "go")
    request = live.engine.requests[-1]
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (0.5, 0.9, 3)
    assert sent(live).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\ngo")
    expect(page.locator(".note")).to_have_text("The limit of tokens ended this answer.")
    seed = request.sampling.seed
    ask(page, "go")
    assert live.engine.requests[-1].sampling.seed == seed


@pytest.mark.parametrize("composing", [{"isComposing": True}, {"keyCode": 229}], ids=str)
def test_enter_of_an_input_method_does_not_send(page, live, composing):
    live.says("yes")
    box = page.get_by_label("Message", exact=True)
    box.fill("にほん")
    press = "(box, more) => box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', cancelable: true, ...more}))"
    assert box.evaluate(press, composing)  # the default was not prevented
    page.keyboard.press("Shift+Enter")
    assert box.input_value() == "にほん\n"
    assert page.locator(".message").count() == 0
    assert not box.evaluate(press, {})
    expect(page.locator(".assistant:not(.growing)")).to_have_count(1)


def test_text_is_never_markup(page, live):
    attack = '<img src=x onerror="document.title=1">\n\n[a](javascript:alert(1)) ![b](https://example.org/b.png)\n\n|<b>|\n|-|\n|<i>|'
    live.says(attack)
    ask(page, attack)
    for role in ("user", "assistant"):
        expect(body(page, role)).to_contain_text('<img src=x onerror="document.title=1">')
        assert body(page, role).locator("img, script, b, i").count() == 0
    assert "[a](javascript:alert(1))" in body(page).text_content()
    links = body(page).locator("a")
    assert [link.get_attribute("href") for link in links.all()] == ["https://example.org/b.png"]
    assert links.get_attribute("rel") == "noopener noreferrer nofollow"
    assert page.locator("td").text_content() == "<i>"
