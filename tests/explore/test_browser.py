"""The page in a real browser: decode, silence, zero, stop, come back by the address; with the keyboard; on a phone."""

import pytest

LOADED = "#ask [type=submit]:enabled"
"""Decode can be pressed once all choices are filled in; it stays so."""


@pytest.fixture
def opened(visit, easy_served):
    """The page on the easy brain, with the first image decoded, as it does on opening."""
    seen = visit(easy_served)
    wait_for_a_decode(seen.page)
    return seen


def wait_for_a_decode(page, after="0"):
    """Wait until the page's count of finished decodes has left ``after``; it only rises, so it cannot be missed."""
    page.wait_for_selector(f"body:not([data-decodes='{after}'])")


def decode(page, button="Decode"):
    before = page.locator("body").get_attribute("data-decodes")
    page.get_by_role("button", name=button).click()
    wait_for_a_decode(page, before)


def caption(page, panel):
    """Words of a panel, and its bits."""
    items = page.locator(f"[data-panel={panel}] .words").first.locator("li")
    texts = [items.nth(number).inner_text().split() for number in range(items.count())]
    return [text[0] for text in texts], [text[1] for text in texts]


def test_a_trial_is_decoded_beside_its_control(opened, easy_served):
    page = opened.page
    assert caption(page, "real")[0]
    assert page.locator("[data-panel]").evaluate_all("all => all.map((one) => one.dataset.panel)") == [
        "real",
        "control",
    ]
    page.get_by_text("Brain tokens that each word attends to").first.click()
    rows = page.locator("[data-panel=real] .cells")
    assert rows.count() == 2 * len(caption(page, "real")[0])
    assert "mostly brain tokens" in rows.first.get_attribute("aria-label")
    assert "voxels" in page.locator("#voxels").get_attribute("aria-label")
    assert opened.complaints == []
    assert {url for url in opened.requested if not url.startswith((easy_served, "data:"))} == set()


def test_silencing_a_region_changes_words_or_bits(opened):
    page = opened.page
    page.select_option("[name=perturbation]", "silence")
    page.select_option("[name=roi]", "streams:early")
    decode(page)
    lost = page.locator("[data-panel=perturbed] .words").nth(1).locator(".bits").all_inner_texts()
    assert any(bits != "0.0" for bits in lost)
    assert "unchanged betas" in page.locator("[data-panel=perturbed] .total").first.inner_text()


def test_zero_betas_say_the_same_of_every_image(opened):
    page = opened.page
    page.select_option("[name=perturbation]", "zero")
    said = []
    for _ in range(3):
        decode(page, "Next image")
        said.append(" ".join(caption(page, "perturbed")[0]))
    assert len(set(said)) == 1


def test_the_address_brings_the_choice_back(opened, visit):
    page = opened.page
    page.select_option("[name=perturbation]", "scale")
    page.fill("[name=factor]", "-1.5")
    page.select_option("[name=image]", index=4)
    decode(page)
    again = visit(page.url)
    wait_for_a_decode(again.page)
    for name in ("perturbation", "factor", "image", "subject", "system"):
        assert again.page.input_value(f"[name={name}]") == page.input_value(f"[name={name}]")
    assert caption(again.page, "perturbed") == caption(page, "perturbed")


def answers(page, turn=0):
    """Answer text of each input to one question."""
    boxes = page.locator(".turn").nth(turn).locator("[data-answer]")
    return {
        boxes.nth(n).get_attribute("data-answer"): boxes.nth(n).inner_text() for n in range(boxes.count())
    }


def ask(page, question):
    before = page.locator("body").get_attribute("data-decodes")
    page.locator("[name=question]").fill(question)
    page.keyboard.press("Enter")
    wait_for_a_decode(page, before)


def test_questions_are_answered_in_turn_beside_their_controls_and_come_back_by_the_address(opened, visit):
    page = opened.page
    ask(page, "What is in the image?")
    ask(page, "A <b>dog</b>?")
    assert list(answers(page)) == ["real", "control", "alone"]
    assert "Probability" in answers(page, 1)["alone"]
    assert "A <b>dog</b>? These betas:" in page.inner_text("#status")
    page.select_option("[name=perturbation]", "zero")
    decode(page)
    assert list(answers(page, 1)) == ["real", "perturbed", "control", "alone"]
    again = visit(page.url)
    wait_for_a_decode(again.page)
    assert [answers(again.page, turn) for turn in (0, 1)] == [answers(page, turn) for turn in (0, 1)]
    again.page.get_by_role("button", name="Clear all questions").click()
    assert "q=" not in again.page.url
    assert again.page.locator(".turn").count() == 0
    assert opened.complaints == []


def test_a_suggested_question_is_asked_and_its_true_answer_shown(opened):
    page = opened.page
    page.get_by_text("Questions about this image in the store").click()
    button = page.locator(".suggested button").first
    question = button.inner_text()
    before = page.locator("body").get_attribute("data-decodes")
    button.click()
    wait_for_a_decode(page, before)
    assert page.locator(".turn h3").first.inner_text() in question
    assert page.locator(".turn > .small").first.inner_text().startswith("True answer: ")


def test_a_strange_address_does_no_harm(visit, easy_served):
    page = visit(f"{easy_served}/?image=<script>&roi=x&subject=nobody&factor=abc&perturbation=lesion").page
    page.wait_for_selector(LOADED)
    assert page.input_value("[name=perturbation]") == "none"
    assert page.input_value("[name=subject]") == "subj08"


def test_it_can_be_used_with_the_keyboard_alone(opened):
    page = opened.page
    page.locator("[name=system]").focus()
    reached = []
    while page.evaluate("document.activeElement.textContent") != "Decode":
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.textContent"))
        assert len(reached) < 20
    assert {"subject", "use", "image", "repetition", "perturbation"} <= set(reached)
    page.keyboard.press("Enter")
    wait_for_a_decode(page, after="1")
    assert page.inner_text("#status") == "Decoded."


def test_systems_are_compared(visit, served, nsd_id):
    page = visit(f"{served}/?system=rft&compare=prefix&image={nsd_id}").page
    wait_for_a_decode(page)
    headings = page.locator(".system h3").all_inner_texts()
    assert headings == ["rft (cross_attention)", "prefix (prefix)"]
    assert "no adapters" in page.locator(".system").nth(1).inner_text()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_overflows_and_axe_is_content(visit, easy_served, dark):
    seen = visit(f"{easy_served}/?perturbation=silence&roi=streams%3Aearly&image=", width=360, dark=dark)
    wait_for_a_decode(seen.page)
    ask(seen.page, "What is in the image?")
    for box in seen.page.locator("summary").all():
        box.click()
    assert seen.overflow_px() == 0
    assert seen.violations() == []
    assert seen.complaints == []


def test_a_server_that_has_gone_is_said(visit, easy_served):
    seen = visit(easy_served)
    wait_for_a_decode(seen.page)
    seen.context.set_offline(True)
    decode(seen.page)
    assert seen.page.locator("#status.problem").count() == 1
    assert "bitllm explore" in seen.page.inner_text("#status")
