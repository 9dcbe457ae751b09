"""The page in a browser: load, run, stream, look at tokens, compare, errors, links, code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import answer, completed, opened, run
from tests.support.fake_playground import GUIDED, KEY, ODD, PLAIN, FakeApi, error

SHIFTS = """() => new Promise((done) => {
    window.shifts = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.shifts += entry.value;
    }).observe({type: "layout-shift", buffered: false});
    requestAnimationFrame(() => done());
})"""


def tokens(page: Page, column: int) -> Locator:
    return page.locator("answer-column").nth(column).locator(".tokens")


def test_the_first_run(page: Page, url: str, api: FakeApi) -> None:
    opened(page, url)
    expect(page.locator("#server")).to_have_text("smol")
    expect(page.locator(".example")).to_have_count(6)
    expect(page.locator("answer-column").nth(1).locator(".purpose")).to_contain_text(
        "Makes the answer follow the document"
    )
    run(page)
    assert answer(page, 0) == "".join(PLAIN[:-1])
    assert answer(page, 1) == "".join(GUIDED[:-1])
    expect(page.locator(".status").nth(1)).to_contain_text("9 tokens, the method applied to 9")
    plain, guided = sorted(api.bodies, key=lambda body: "decoding" in body)
    assert plain["messages"] == guided["messages"]
    assert guided["decoding"]["guide"] == {"without": page.input_value("#document")}
    expect(tokens(page, 1).locator(".is-end")).to_have_text("end")


def test_tokens_come_one_by_one_and_nothing_moves(page: Page, url: str, api: FakeApi) -> None:
    api.step_s = 0.05
    opened(page, url)
    page.evaluate(SHIFTS)
    page.get_by_role("button", name="Run", exact=True).click()
    seen = set()
    for _ in range(100):
        seen.add(page.locator("answer-column").nth(1).locator(".token").count())
        if len(GUIDED) in seen:
            break
        page.wait_for_timeout(10)
    assert len(seen) > 3
    expect(page.locator(".status").nth(1)).to_contain_text("complete")
    assert page.evaluate("window.shifts") < 0.001


def test_a_run_can_be_stopped(page: Page, url: str, api: FakeApi) -> None:
    api.step_s = 0.2
    opened(page, url)
    expect(page.locator("#stop")).to_be_disabled()
    page.locator("#run").click()
    expect(page.locator("answer-column").nth(1).locator(".token").first).to_be_visible()
    page.locator("#stop").click()
    expect(page.locator(".status").nth(1)).to_have_text("Stopped.")
    expect(page.locator("#stop")).to_be_disabled()


def test_the_card_of_a_token(page: Page, url: str, shots: Path) -> None:
    opened(page, url)
    run(page)
    card = page.locator("token-card")
    expect(card).to_be_hidden()
    tokens(page, 1).locator(".token").nth(6).hover()
    expect(card).to_be_visible()
    expect(card.locator(".card-sentence")).to_have_text(
        "With the document, the first choice is “Berlin” (75 %); without it, it is “Paris” (75 %). "
        "The method makes it “Berlin” (75 %)."
    )
    streams = card.locator(".stream")
    expect(streams.locator("h4")).to_have_text(
        ["With the document", "Without it", "With the method"]
    )
    expect(streams.nth(1).locator("li")).to_have_text(["·Paris75 %", "·Rome20 %"])
    for text in ("Entropy3.00 nats", "Divergence (KL)3.00 nats", "Surprise0.10 nats"):
        expect(card.locator(".numbers")).to_contain_text(text)
    page.screenshot(path=shots / "card.png")
    tokens(page, 0).locator(".token").nth(6).hover()
    expect(card.locator(".card-sentence")).to_have_text(
        "The model's first choice is “Paris” (75 %)."
    )
    page.mouse.move(5, 5)
    expect(card).to_be_hidden()
    bar = page.locator("answer-column").nth(1).locator("strip-chart rect").nth(2)
    bar.hover(force=True)
    expect(card.locator(".card-head")).to_contain_text("·Tower")


def test_entries_without_candidates_show_their_numbers(page: Page, url: str) -> None:
    opened(page, f"{url}#prompt=a&document=b&top=0&with=cad")
    run(page)
    tokens(page, 0).locator(".token").nth(2).hover()
    expect(page.locator("token-card .numbers")).to_contain_text("Entropy1.00 nats")
    expect(page.locator("token-card .stream")).to_have_count(0)


def test_every_figure_can_be_the_colour(page: Page, url: str) -> None:
    opened(page, url)
    run(page)
    for label, low, high in (("Entropy", 0.0, 4 / 6), ("Divergence (KL)", 0.0, 0.8)):
        page.locator("#colour").select_option(label=label)
        levels = (
            tokens(page, 1)
            .locator(".token")
            .evaluate_all(
                "(all) => all.map((one) => Number(one.style.getPropertyValue('--level')))"
            )
        )
        assert levels == sorted(levels)
        assert [levels[0], levels[-1]] == pytest.approx([low, high])
        expect(page.locator("#legend")).to_have_attribute("aria-label", f"Legend: {label} in nats, "
            + {"Entropy": "0, 3, ≥ 6", "Divergence (KL)": "0, 2.5, ≥ 5"}[label])  # fmt: skip
    expect(tokens(page, 0).locator(".has-level")).to_have_count(0)
    page.locator("#colour").select_option(label="Surprise")
    expect(tokens(page, 0).locator(".has-level")).to_have_count(len(PLAIN))


def test_methods_beside_each_other(page: Page, url: str, api: FakeApi, shots: Path) -> None:
    api.extras = frozenset({"small", "look-back"})
    opened(page, url)
    for name in ("entropy_switch", "look_back"):
        page.get_by_role("button", name="Add a column").click()
        page.locator("answer-column").last.get_by_label("Method").select_option(name)
    expect(page.get_by_role("button", name="Add a column")).to_be_disabled()
    run(page)
    assert len(api.bodies) == 4
    page.locator("#colour").select_option("model")
    expect(page.locator("#legend .ramp-ticks")).to_have_text("smalllarge")
    expect(tokens(page, 2).locator(".token").nth(5)).to_have_attribute(
        "aria-label", "·in, Model large"
    )
    page.locator("#colour").select_option("alarm")
    expect(tokens(page, 3).locator(".token").nth(3)).to_have_attribute(
        "aria-label", "·now, Alarm alarm"
    )
    page.locator("#colour").select_option("entropy")
    page.screenshot(path=shots / "compare.png", full_page=True)
    page.locator("answer-column").first.get_by_role("button", name="Remove").click()
    expect(page.locator("answer-column")).to_have_count(3)


def test_methods_that_the_server_lacks_say_what_they_need(page: Page, url: str) -> None:
    opened(page, url)
    option = page.locator("answer-column").first.locator("option[value=contrastive]")
    expect(option).to_be_disabled()
    expect(option).to_contain_text("serve with --amateur")


def test_parameters_come_from_the_schema(page: Page, url: str, api: FakeApi) -> None:
    opened(page, f"{url}#prompt=a&document=b&with=adacad")
    column = page.locator("answer-column")
    column.get_by_label("floor", exact=True).fill("0.25")
    column.get_by_label("jsd_base", exact=True).select_option("bits")
    run(page)
    sent = api.bodies[0]["decoding"]
    assert (sent["floor"], sent["jsd_base"]) == (0.25, "bits")
    column.get_by_label("floor", exact=True).fill("")
    column.get_by_label("jsd_base", exact=True).select_option("nats")
    run(page)
    assert {"floor", "jsd_base"}.isdisjoint(api.bodies[1]["decoding"])
    column.get_by_role("button", name="About floor").click()
    expect(column.locator(".tip:popover-open")).to_have_text(
        "Smallest contrast strength. (from 0 to 10)"
    )
    column.get_by_label("Method", exact=True).select_option("vdgd")
    column.get_by_label("grounding", exact=True).fill("the text")
    run(page)
    assert api.bodies[2]["decoding"]["grounding"] == "the text"


def test_tokens_are_text(page: Page, url: str, api: FakeApi) -> None:
    api.guided = ODD
    opened(page, url)
    run(page)
    expected = "<b>bold</b>\n tab\t🦊 <img src=x onerror=alert(1)>"
    assert tokens(page, 1).evaluate("(one) => one.textContent") == expected
    expect(tokens(page, 1).locator("b, img")).to_have_count(0)
    tokens(page, 1).locator(".token").nth(1).focus()
    expect(page.locator("token-card .chip")).to_have_text("↵")


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ("decoding.floor", "decoding.floor"),
        ("decoding.guide.without", "document"),
        ("messages.0.content", "prompt"),
        ("max_tokens", "max_tokens"),
    ],
)
def test_an_error_leads_to_its_field(
    page: Page, url: str, api: FakeApi, shots: Path, param: str, place: str
) -> None:
    api.fault = lambda body: (
        error(400, "Input should be less than or equal to 10", param)
        if "decoding" in body
        else None
    )
    opened(page, url)
    page.locator("#settings summary").click()
    page.get_by_role("button", name="Run", exact=True).click()
    alert = page.locator("answer-column").nth(1).locator(".error")
    expect(alert).to_contain_text("Input should be less than or equal to 10.")
    expect(alert).to_contain_text(f"Field: {param}")
    if place == "decoding.floor":
        page.screenshot(path=shots / "error.png", full_page=True)
    alert.get_by_role("button", name=param).click()
    field = page.locator(f'[data-place="{place}"]')
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".status").first).to_contain_text("complete")


def test_errors_without_a_field_of_the_page(page: Page, url: str, api: FakeApi) -> None:
    opened(page, url)
    alert = page.locator("answer-column").nth(1).locator(".error")
    for change, text in (
        ({"error_at": 3}, "lost."),
        ({"error_at": None, "cut_at": 3}, "The connection was closed before the answer was"),
        (
            {"cut_at": None, "fault": lambda body: error(500, "It broke.", "logit_bias")},
            "logit_bias",
        ),
    ):
        vars(api).update(change)
        page.locator("#run").click()
        expect(alert).to_contain_text(text)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.locator("#run").click()
    expect(alert).to_contain_text("The server cannot be reached. Is it still running?")
    page.unroute("**/v1/chat/completions")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=502, body="<html>bad gateway</html>"),
    )
    page.locator("#run").click()
    expect(alert).to_contain_text("The server answered with status 502.")


def test_a_question_is_needed(page: Page, url: str, api: FakeApi) -> None:
    opened(page, url)
    page.locator("#prompt").fill(" ")
    page.locator("#run").click()
    expect(page.locator(".error").first).to_contain_text("Write a question first.")
    assert api.bodies == []


def test_a_key_stays_in_memory(page: Page, url: str, api: FakeApi) -> None:
    api.key = KEY
    page.goto(url)
    expect(page.locator("#server")).to_contain_text("No API key")
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#run")).to_be_disabled()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#server")).to_have_text("smol")
    run(page)
    kept = page.evaluate(
        "() => JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    )
    assert KEY not in kept
    page.locator("answer-column").nth(1).get_by_role("button", name="Copy as code").click()
    expect(page.locator("#snippet-code")).to_contain_text("DIVSERVE_API_KEY")
    assert KEY not in page.locator("#snippet-code").inner_text()


def test_a_link_brings_the_page_back(browser: Browser, page: Page, url: str) -> None:
    opened(page, url)
    page.locator("#prompt").fill("Who & <what>?\nü")
    page.locator("answer-column").nth(1).get_by_label("floor", exact=True).fill("0.5")
    page.keyboard.press("Tab")
    page.locator("#colour").select_option("jsd")
    other = opened(browser.new_page(), page.url)
    assert other.input_value("#prompt") == "Who & <what>?\nü"
    assert (
        other.locator("answer-column").nth(1).get_by_label("floor", exact=True).input_value()
        == "0.5"
    )
    assert other.locator("#colour").input_value() == "jsd"
    other.close()


def test_an_example_runs(page: Page, url: str, api: FakeApi) -> None:
    opened(page, url)
    page.locator(".example").nth(2).click()
    completed(page)
    assert len(api.bodies) == 2


@pytest.mark.parametrize("keyed", [False, True])
def test_code_that_runs(page: Page, url: str, api: FakeApi, keyed: bool) -> None:
    """The code of the dialog sends what the page sends."""
    opened(page, f'{url}#prompt=It\'s a "q"?&document=a$b `c`&with=adacad {{"floor":0.5}}')
    if keyed:
        api.key = KEY
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Enter")
    run(page)
    page.locator("answer-column").get_by_role("button", name="Copy as code").click()
    codes = {}
    for kind in ("curl", "Python", "JavaScript"):
        page.locator("#snippet").get_by_role("button", name=kind).click()
        codes[kind] = page.locator("#snippet-code").inner_text()
    environment = {"PATH": "/usr/bin:/bin", "DIVSERVE_API_KEY": KEY}
    for command in (["bash", "-c", codes["curl"]], [sys.executable, "-c", codes["Python"]]):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert "Berlin" in done.stdout
    script = f"const process = {{env: {json.dumps(environment)}}}; let out = '';"
    script += "const console = {log: (text) => { out += text; }};"
    assert "Berlin" in page.evaluate(
        f"async () => {{ {script} {codes['JavaScript']}; return out; }}"
    )
    page_sent, *sent = api.bodies
    assert sent == [page_sent] * 3


def test_a_key_that_is_revoked(page: Page, url: str, api: FakeApi) -> None:
    opened(page, url)
    api.key = KEY
    page.locator("#run").click()
    expect(page.locator(".error").first).to_contain_text("Field: key")
    page.locator(".error").first.get_by_role("button", name="key").click()
    expect(page.locator("#key")).to_be_focused()
