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
expect.set_options(timeout=20_000)

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
    context.set_default_timeout(20_000)
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


def says(page: sync_api.Page, *deltas: dict) -> None:
    """The next answers are made of these; no server is asked."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=lines, content_type="text/event-stream"))


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
    expect(page.locator(".stats")).to_contain_text(
        re.compile(r"tokens/s · first token after .* of 1,000 tokens of cont")
    )
    assert body(page).text_content() == "the capital of France is Paris; yes"
    # Whoever listens hears the answer once, when it is whole.
    assert page.locator("#announce").text_content() == "Answer: the capital of France is Paris; yes"
    speed = float(re.search(r"([\d.]+) tokens/s", page.locator(".stats").text_content())[1])
    assert 1 < speed < 40


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
    expect(titles).to_have_text(["the east", "of France?"])
    titles.last.click()
    expect(body(page, "user")).to_have_text("of France?")
    expect(body(page)).to_have_text("Paris")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete of France?").click()
    expect(titles).to_have_text(["the east"])
    page.reload()
    expect(titles).to_have_text(["the east"])


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
    says(page, {"content": attack})
    ask(page, attack)
    for role in ("user", "assistant"):
        expect(body(page, role)).to_contain_text('<img src=x onerror="document.title=1">')
        assert body(page, role).locator("img, script, b, i").count() == 0
    assert "[a](javascript:alert(1))" in body(page).text_content()
    links = body(page).locator("a")
    assert [link.get_attribute("href") for link in links.all()] == ["https://example.org/b.png"]
    assert links.get_attribute("rel") == "noopener noreferrer nofollow"
    assert page.locator("td").text_content() == "<i>"


def test_markdown(page):
    text = """# Title
one **bold *both*** `a<b` snake_case_name ~~old~~ 1 * 2 * 3 https://example.org/x.

3. third
   - inner

     more
4. fourth

> quoted
goes on

| a | b |
|:-:|--:|
| 1 | `x\\|y` |

```py
if a < b:
    print("**")
"""
    says(page, *({"content": character} for character in text))
    ask(page, "go")
    html = re.sub(r' (class|tabindex|role|aria-label|target|rel|type)="[^"]*"', "", body(page).inner_html())
    assert html == (
        "<h3>Title</h3>"
        "<p>one <strong>bold <em>both</em></strong> <code>a&lt;b</code> snake_case_name <s>old</s> 1 * 2 * 3 "
        '<a href="https://example.org/x">https://example.org/x</a>.</p>'
        '<ol start="3"><li>third<ul><li>inner<p>more</p></li></ul></li><li>fourth</li></ol>'
        "<blockquote><p>quoted\ngoes on</p></blockquote>"
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td><code>x|y</code></td></tr></tbody></table></div>"
        "<div><div><span>py</span><button>Copy</button></div>"
        '<pre><code>if a &lt; b:\n    print("**")\n</code></pre></div>'
    )


HOSTILE = ("*a ", "_a ", "**a ", "~~a ", "`a ", "`", " ", "[a", "[a](", "[", "xhttps://", "https://.", "_a_b", "\\\\ ")


@pytest.mark.parametrize("bit", HOSTILE)
def test_hostile_text_takes_time_by_its_length(page, bit):
    """100,000 characters that open what nothing closes: with time by the square, each of these takes minutes."""
    program = """async (text) => {
        const { inline } = await import("./inline.js");
        const started = performance.now();
        inline(text);
        return performance.now() - started;
    }"""
    assert page.evaluate(program, bit * (100_000 // len(bit))) < 5_000


def test_reasoning_is_folded_and_tool_calls_are_shown(page, live):
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    pieces = ({"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"city": ', '"Tokyo"}'))
    says(page, {"reasoning_content": "let me "}, {"reasoning_content": "see"}, {"tool_calls": [call]}, *pieces)
    ask(page, "weather?")
    thought = page.locator(".thought")
    expect(thought).to_be_hidden()
    page.get_by_text("Reasoning", exact=True).click()
    expect(thought).to_have_text("let me see")
    expect(page.get_by_text("Calls the tool weather")).to_be_visible()
    assert json.loads(page.locator(".call pre").text_content()) == {"city": "Tokyo"}


def test_a_key_is_asked_for_and_not_stored_for_good(context, folder):
    with serving(folder, Security(keys=("sesame",))) as live:
        page = context.new_page()
        page.goto(live.url)
        for key in ("wrong", "sesame"):
            page.get_by_label("API key", exact=True).fill(key)
            page.get_by_role("button", name="Use it").click()
        expect(page.locator("#model")).to_have_text("org/tiny")
        live.says("yes")
        ask(page, "now?")
        assert body(page).text_content() == "yes"
        assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_a_busy_server_names_the_time_to_wait(page, live):
    live.says("yes")
    page.route("**/v1/chat/completions", lambda route: refuse(route, 429, "server_busy", "2"), times=1)
    ask(page, "now?", wait=False)
    again = page.locator(".problem button")
    expect(again).to_be_disabled()
    expect(again).to_have_text(re.compile(r"Try again in \d s"))
    expect(page.locator(".problem")).to_contain_text("not now")
    expect(again).to_be_enabled()
    again.click()
    expect(body(page)).to_have_text("yes")
    assert page.locator(".problem").count() == 0


def test_a_loading_model_is_waited_for(page, live):
    live.says("yes")
    page.route("**/v1/chat/completions", lambda route: refuse(route, 503, "loading", "1"), times=1)
    ask(page, "now?", wait=False)
    expect(page.locator(".problem.waiting")).to_contain_text("The model is loading")
    expect(page.locator(".assistant:not(.growing) .body")).to_have_text("yes")


def test_a_lost_connection_loses_no_text(page, live):
    page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    ask(page, "now?", wait=False)
    expect(page.locator(".problem")).to_contain_text("The server cannot be reached")
    half = 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=half), times=1)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".problem")).to_contain_text("The connection was lost")
    assert body(page).text_content() == "half"
    live.says("whole")
    page.get_by_role("button", name="Try again").click()
    expect(body(page)).to_have_text("whole")
    assert page.locator(".message").count() == 2


def test_themes_and_contrast(page, live):
    """The colours of texts on their grounds differ by 4.5 : 1 (WCAG AA) in both themes."""
    ratio = """() => {
      const light = (name) => {
        const paint = document.createElement("canvas").getContext("2d");
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(--${name})`;
        paint.fillStyle = getComputedStyle(probe).color;
        probe.remove();
        paint.fillRect(0, 0, 1, 1);
        const linear = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
          .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
      };
      const pairs = [["ink", "paper"], ["ink", "tint"], ["ink", "heat"], ["dim", "paper"], ["dim", "side"],
        ["dim", "raised"], ["dim", "tint"], ["accent", "paper"], ["on-accent", "accent"], ["danger", "paper"]];
      return pairs.map(([a, b]) => {
        const [low, high] = [light(a), light(b)].sort((a, b) => a - b);
        return [a, b, (high + 0.05) / (low + 0.05)];
      }).filter(([, , value]) => value < 4.5);
    }"""
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    assert page.evaluate(ratio) == []
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    assert page.evaluate(ratio) == []
    for name, colour in (("light", light), ("dark", dark)):
        page.get_by_role("button", name="Theme").click()
        page.reload()
        assert page.get_by_role("button", name="Theme").text_content() == f"Theme: {name}"
        assert page.evaluate(ground) == colour
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#side")).to_be_hidden()


def test_tokens_light_up_as_the_indexers_select(page, live):
    live.says("the capital of Japan is Tokyo")
    question = "the capital of France is Paris; the capital of Japan is?"
    ask(page, question)
    asked = []
    page.on("request", lambda request: asked.append(request) if "selection" in request.url else None)
    page.get_by_role("button", name="Tokens").click()
    tokens = page.locator("#tokens .token")
    expect(page.locator("#selection-line")).to_contain_text("tokens up to itself are read")
    for token in tokens.all():
        expect(token).to_have_accessible_name(re.compile(r"\S"))  # blank ones too
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "the capital of Japan is Tokyo"},
    ]
    _, ids = live.served.chat(messages, add_generation_prompt=False)
    assert tokens.count() == len(ids)

    def right(place: int) -> None:
        expect(tokens.nth(place)).to_have_class(re.compile("asked"))
        expect(page.locator("#tokens.waiting")).to_have_count(0)
        told = live.post("/inazuma/selection", {"tokens": ids, "position": place}).json()
        for layer in ("all", "1"):
            page.locator("#layer").select_option(layer)
            one_layer = [int(one in told["layers"][1]) for one in range(place + 1)]
            counts = told["counts"] if layer == "all" else one_layer
            read = "tokens => tokens.filter(token => token.classList.contains('read')).map(token => token.place)"
            assert tokens.evaluate_all(read) == [one for one in range(place) if counts[one]]
            of = 3 if layer == "all" else 1
            share = "token => +token.style.getPropertyValue('--share')"
            assert tokens.nth(counts.index(max(counts))).evaluate(share) == pytest.approx(max(counts) / of)
        page.locator("#layer").select_option("all")

    last = len(ids) - 1
    right(last)
    assert page.locator("#legend li").all_text_contents() == [f"read by {n} of 3 layers" for n in (1, 2, 3)]
    tokens.nth(last).focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    right(last - 3)
    assert tokens.evaluate_all("tokens => tokens.filter(token => token.tabIndex === 0).length") == 1
    assert len(asked) == 2  # not for the tokens passed on the way
    tokens.nth(20).hover()
    right(20)
    tokens.nth(last).focus()
    right(last)
    assert len(asked) == 3  # the first one was remembered
    page.keyboard.press("Enter")
    tokens.nth(5).hover()
    expect(page.locator("#selection-line")).to_contain_text(re.compile(r"read by \d of 3 layers\.$"))
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()


def test_a_dense_model_says_so(page, live):
    live.says("yes")
    ask(page, "go")
    dense = {"tokens": [], "position": 0, "layers": [None, None], "counts": [0] * 99}
    page.route("**/inazuma/selection", lambda route: route.fulfill(json=dense))
    page.get_by_role("button", name="Tokens").click()
    expect(page.locator("#selection-line")).to_contain_text("this model is dense, there is no selection")
    assert page.locator(".token.read").count() == 0
