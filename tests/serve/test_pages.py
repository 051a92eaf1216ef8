"""Pages: who has them, who finds them, and which is forgotten first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inazuma.ops.pool import PAGE
from inazuma.serve.pages import ROOT, Pages, name_of


def write(pages: Pages, tokens: list[int]) -> list[int]:
    """Takes and publishes what a text of these tokens fills."""
    held, [*_, name] = pages.find(tokens)
    for start in range(len(held) * PAGE, len(tokens) - PAGE + 1, PAGE):
        page = pages.take()
        assert page is not None
        held.append(page)
        name = pages.publish(page, name, tokens[start : start + PAGE])
    return held


def test_a_beginning_is_found_and_what_differs_is_not():
    pages = Pages(8)
    a, b = list(range(3 * PAGE)), [*range(2 * PAGE), *range(PAGE)]
    held = write(pages, a)
    assert pages.find(b)[0] == held[:2]
    assert pages.find(list(range(PAGE, 2 * PAGE)))[0] == [], "the same tokens elsewhere are another page"
    assert pages.find(a[: 2 * PAGE - 1])[0] == held[:1], "a page that is not full is not found"


def test_idle_pages_stay_until_they_are_wanted_and_the_end_of_a_text_goes_first():
    pages = Pages(4)
    tokens = list(range(4 * PAGE))
    held = write(pages, tokens)
    assert pages.available == 0 and pages.take() is None
    pages.release(held)
    assert pages.available == 4
    assert pages.take() == held[3]
    assert pages.find(tokens)[0] == held[:3], "the others are still known"


def test_a_page_two_texts_use_is_not_given_away():
    pages = Pages(2)
    tokens = list(range(PAGE))
    first, second = write(pages, tokens), write(pages, tokens)
    assert first == second
    pages.release(first)
    assert pages.available == 1
    pages.release(second)
    assert pages.available == 2


def test_names_tell_beginnings_apart():
    tokens = list(range(PAGE))
    assert name_of(ROOT, tokens) != name_of(name_of(ROOT, tokens), tokens)
    assert name_of(ROOT, tokens) != name_of(ROOT, tokens[::-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), max_size=30))
def test_no_page_is_lost_or_held_twice(steps):
    pages, held = Pages(9), []
    for kind, length, release in steps:
        tokens = [kind] * (length * PAGE)
        found, [*_, name] = pages.find(tokens)
        mine = list(found)
        while len(mine) < length and (page := pages.take()) is not None:
            name = pages.publish(page, name, tokens[:PAGE])
            mine.append(page)
        held.append(mine)
        if release:
            pages.release(held.pop(0))
        users = {page for text in held for page in text}
        assert pages.available == pages.total - len(users)
    for text in held:
        pages.release(text)
    assert pages.available == 9
    assert len({pages.take() for _ in range(9)} - {None}) == 9
