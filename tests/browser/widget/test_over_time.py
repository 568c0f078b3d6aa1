"""The widget over a page's life: the visitor's identity, the conversation, and repeated answers."""

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visitor, settled
from tests.browser.support.stub import Stub, turn
from tests.browser.widget.test_visitor import forgotten_between
from tests.browser.widget.test_widget import answer, ask, open_chat
from tests.support.harness import until


def answered(open_page: Visitor, host: str, question: str) -> Page:
    """A page with one answered question."""
    page = open_page(host)
    open_chat(page)
    ask(page, question)
    expect(page.locator(".actions")).to_be_visible()
    return page


def test_each_session_gets_a_fresh_identity_token(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    page.evaluate("""() => {
        let made = 0;
        SkillChat("identify", async () => `token ${++made}`);
    }""")
    open_chat(page)
    ask(page, "Who am I?")
    expect(answer(page)).to_have_text("Hello world.")
    stub.tokens.clear()
    ask(page, "And now?")
    expect(page.locator(".actions")).to_have_count(2)
    page.evaluate("SkillChat('reset')")
    expect(page.locator(".question")).to_have_count(0)
    assert [session["identity"] for session in stub.sessions] == ["token 1", "token 2", "token 3"]
    page.evaluate("SkillChat('identify', null); SkillChat('send', 'And without?')")
    expect(answer(page)).to_have_text("Hello world.")
    assert "identity" not in stub.sessions[-1]


def test_a_new_chat_proves_the_old_ones_identity(open_page: Visitor, host: str, stub: Stub) -> None:
    """The session's token may have expired by then, so the identity is sent along."""
    page = open_page(host)
    page.evaluate("SkillChat('identify', 'a.b.c')")
    open_chat(page)
    ask(page, "Before")
    expect(page.locator(".actions")).to_be_visible()
    page.evaluate("SkillChat('reset')")
    expect(page.locator(".question")).to_have_count(0)
    assert stub.sessions[-1] == {"skill": "help", "resume": "secret", "identity": "a.b.c"}
    assert "secret" not in page.evaluate("JSON.stringify(sessionStorage)")


def test_an_element_removed_and_reinserted_keeps_its_conversation(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(f"{host}/elements")
    second = page.locator("skill-chat").nth(1)
    second.get_by_role("textbox").fill("Before")
    second.get_by_role("textbox").press("Enter")
    expect(second.locator(".actions")).to_be_visible()
    stub.turns = [turn("Before", "Hello **world**.")]
    second.evaluate("e => { window.chat = e; e.remove() }")
    settled(page)
    page.evaluate("document.body.append(chat)")
    second.get_by_role("button", name="Open chat").click()
    expect(second.locator(".question")).to_have_text("You said" + "Before")
    expect(second.locator(".answer .text").last).to_have_text("Hello world.")


def test_what_is_sent_after_a_reset_is_asked_in_the_new_conversation(open_page: Visitor, host: str, stub: Stub) -> None:
    page = answered(open_page, host, "Before")
    page.evaluate("SkillChat('reset'); SkillChat('send', 'After')")
    expect(page.locator(".question")).to_have_text(["You said" + "After"])
    expect(answer(page)).to_have_text("Hello world.")
    assert (stub.resets, stub.tokens_of_questions) == (1, ["token-1", "token-2"])


def test_a_new_chat_is_announced_only_after_the_server_confirmed_it(open_page: Visitor, host: str, stub: Stub) -> None:
    page = answered(open_page, host, "Before")
    stub.turns = [turn("Before", "Hello **world**.")]
    stub.reset_status = 503
    page.evaluate("SkillChat('reset')")
    expect(page.locator(".trouble-line")).to_contain_text("The assistant is busy.")
    expect(page.get_by_role("status")).not_to_have_text("A new chat has begun.")
    stored = page.evaluate("JSON.stringify(sessionStorage)")
    assert "secret" not in stored, "the next page has no way to it in any case"
    stub.reset_status = 204
    page.evaluate("SkillChat('reset')")
    expect(page.locator(".trouble-line")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("A new chat has begun.")
    expect(page.locator(".question")).to_have_count(0)
    assert stub.resets == 1


def test_again_replaces_the_answer_once_another_begins_also_after_a_failure(
    open_page: Visitor, host: str, stub: Stub
) -> None:
    page = answered(open_page, host, "Hello")
    stub.status, stub.pieces = 500, ("Another",)
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".trouble-line")).to_be_visible()
    expect(page.locator(".answer .text strong")).to_have_text(["anything", "world"])
    stub.status = 200
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .text")).to_have_text(["Ask me anything.", "Another"])
    expect(page.locator(".question")).to_have_count(1)
    assert [asked.get("replace") for asked in stub.asked] == [None, "rep_1", "rep_1"]


def test_again_after_the_server_forgot_the_answer_asks_anew(open_page: Visitor, host: str, stub: Stub) -> None:
    page = answered(open_page, host, "Hello")
    stub.pieces, stub.replaceable = ("Another",), False
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".answer .text")).to_have_text(["Ask me anything.", "Another"])
    assert [asked.get("replace") for asked in stub.asked] == [None, "rep_1", None]


def test_again_by_keyboard_keeps_the_focus_in_the_panel(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    page.get_by_role("button", name="Answer again").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    expect(page.get_by_role("button", name="Answer again")).to_be_visible()
    assert len(stub.asked) == 2
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_a_comment_outlives_a_rating_that_is_not_stored(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    ask(page, "Hello")
    stub.rating_status = 500
    stub.held.add("rating")
    page.get_by_role("button", name="Good answer").click()
    field = page.get_by_role("textbox", name="What should we know?")
    field.fill("Very clear")
    stub.held.clear()
    expect(page.locator(".hint")).to_have_text("Your feedback could not be stored.")
    expect(field).to_have_value("Very clear")
    expect(field).to_be_focused()
    stub.rating_status = 200
    page.get_by_role("button", name="Send feedback").click()
    expect(page.locator(".hint")).to_have_text("Thank you for your feedback.")
    expect(page.get_by_role("button", name="Good answer", pressed=True)).to_be_visible()
    assert stub.ratings == [{"reply": "rep_1", "rating": "up", "comment": "Very clear"}]


def test_an_exhausted_budget_has_no_countdown(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    stub.status, stub.headers, stub.error = 429, {"Retry-After": "3600"}, {"message": "No.", "code": "budget_exceeded"}
    ask(page, "Hello")
    expect(page.locator(".trouble-line span")).to_have_text("This assistant has used up its budget for now.")
    expect(page.get_by_role("button", name="Try again")).to_be_enabled()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_a_countdown_ends_once_its_cause_is_gone(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.session_status, stub.headers = 429, {"Retry-After": "60"}
    page = open_page(host)
    page.clock.install()
    open_chat(page)
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    stub.session_status = 200
    page.keyboard.press("Escape")
    open_chat(page)
    expect(page.locator(".trouble-line")).to_have_count(0)
    page.clock.run_for(1200)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")


def test_a_countdown_ends_on_time_after_a_sleep(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    page.clock.install()
    stub.status, stub.headers = 503, {"Retry-After": "60"}
    ask(page, "Hello")
    expect(page.get_by_role("button", name="Try again")).to_be_disabled()
    page.clock.fast_forward(61_000)  # each timer fires once, as after a laptop's sleep
    expect(page.get_by_role("button", name="Try again")).to_be_enabled()
    expect(page.locator(".trouble-line span")).to_have_text("You can try again now.")


def test_a_silent_connection_is_resumed(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.silent = 1
    page = open_page(host)
    open_chat(page)
    page.clock.install()
    ask(page, "Hello")
    expect(answer(page)).to_have_text("Hello world.")
    assert stub.resumed == []
    page.clock.fast_forward(46_000)
    expect(page.locator(".actions")).to_be_visible()
    assert stub.resumed == ["rep_1?from=4"]


def test_an_unanswered_request_times_out(open_page: Visitor, host: str, stub: Stub) -> None:
    page = answered(open_page, host, "Hello")
    stub.held.add("rating")
    page.evaluate("AbortSignal.timeout = (timeout => () => timeout.call(AbortSignal, 100))(AbortSignal.timeout)")
    page.get_by_role("button", name="Good answer").click()
    expect(page.locator(".hint")).to_have_text("Your feedback could not be stored.")


def test_text_sent_during_an_answer_is_kept_in_the_field(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.hold = True
    page = open_page(host)
    open_chat(page)
    ask(page, "First")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    field = page.get_by_role("textbox", name="Your message")
    page.evaluate("SkillChat('send', 'By script')")
    expect(field).to_have_value("By script")
    field.fill("By hand")
    page.evaluate("SkillChat('send', 'By script')")
    expect(field).to_have_value("By hand\nBy script")
    assert [asked["text"] for asked in stub.asked] == ["First"]


def test_a_destroyed_chat_requests_nothing_more(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.held.add("session")
    page = open_page(host)
    open_chat(page)
    until(lambda: stub.sessions)
    page.evaluate("SkillChat('send', 'Hello'); SkillChat('destroy')")
    stub.held.clear()
    until(lambda: stub.tokens)
    settled(page)
    assert (len(stub.sessions), stub.asked) == (1, [])


def test_a_key_that_ends_a_composition_sends_nothing(open_page: Visitor, host: str, stub: Stub) -> None:
    """Safari ends the composition before the key that did it."""
    page = open_page(host)
    open_chat(page)
    field = page.get_by_role("textbox", name="Your message")
    field.fill("日本")
    field.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "bubbles": True})
    settled(page)
    assert (field.input_value(), stub.asked) == ("日本", [])


def test_a_stop_that_fails_late_ends_no_other_answer(open_page: Visitor, host: str, stub: Stub) -> None:
    stub.hold, stub.stop_status = True, 500
    stub.held.add("stop")
    page = open_page(host)
    open_chat(page)
    ask(page, "First")
    expect(answer(page)).to_have_text("Hello world.")
    with page.expect_response("**/stop"):
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".hint")).to_have_text("Stopped.")
        ask(page, "Second")
        expect(answer(page)).to_have_text("Hello world.")
        stub.held.clear()
    settled(page)
    stub.hold = False
    stub.stopped.append("rep_2")
    expect(page.locator(".hint")).to_have_text(["Stopped.", "Stopped."])


def test_a_context_that_is_too_long_is_omitted_with_a_warning(open_page: Visitor, host: str, stub: Stub) -> None:
    page = open_page(host)
    open_chat(page)
    page.evaluate("SkillChat('setContext', 'é'.repeat(1025))")
    with page.expect_console_message(lambda message: "2048" in message.text):
        ask(page, "Hello")
    expect(page.locator(".actions")).to_have_count(1)
    page.evaluate("SkillChat('setContext', 'é'.repeat(1024))")
    ask(page, "Hello")
    expect(page.locator(".actions")).to_have_count(2)
    assert [asked.get("context") for asked in stub.asked] == [None, "é" * 1024]


def test_a_lost_conversation_is_announced(open_page: Visitor, host: str, stub: Stub) -> None:
    """The server began a new one: it does not know the turns above."""
    page = forgotten_between(open_page, host, stub)
    order = "all => all.map(e => e.textContent)"
    shown = page.locator(".turns > :is(.question, .hint)").evaluate_all(order)
    assert shown == ["You saidBefore", "A new chat has begun.", "You saidAfter"]
    ask(page, "And on")
    expect(page.locator(".actions")).to_have_count(3)
    expect(page.locator(".hint")).to_have_count(1)
