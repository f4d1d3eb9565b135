"""Pages in a real browser: names are text, zoom, search and colours work, nothing is loaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgery
from surgery.errors import PartialLoadWarning
from surgery.families.registry import Registry
from surgery.reports.text import clean
from surgery.weights import read
from tests.reports.models import HOSTILE_NAMES, hostile_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium found: apt-get install chromium (as .ci/run does)"
)


@dataclass
class Seen:
    """What a page did besides showing itself."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox of chromium does not run as root, and these pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opener:
    """Opens a report as a page of its own, and watches it."""

    browser: Any
    folder: Path
    seen: Seen = field(default_factory=Seen)
    number: int = 0

    def __call__(
        self, value: object, *, width: int = 1280, scheme: str = "light", page: bool = True
    ) -> Any:
        self.number += 1
        file = self.folder / f"{self.number}.html"
        file.write_text(surgery.report(value, "html", page=page), "utf-8")
        size = {"width": width, "height": 900}
        opened = self.browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        opened.on("console", lambda message: self.seen.errors.append(message.text))
        opened.on("pageerror", lambda error: self.seen.errors.append(str(error)))
        opened.on("dialog", lambda dialog: self.seen.errors.append(dialog.message))
        opened.route("**/*", lambda route: self._only(route, file.as_uri()))
        opened.goto(file.as_uri())
        if page:
            opened.wait_for_selector("html[data-ready]")
        return opened

    def _only(self, route: Any, uri: str) -> None:
        if route.request.url == uri:
            route.continue_()
        else:
            self.seen.requests.append(route.request.url)
            route.abort()


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Opener]:
    opener = Opener(chromium, tmp_path)
    yield opener
    for context in chromium.contexts:
        context.close()
    assert opener.seen == Seen()


def small() -> nn.Module:
    """A trunk of two stages, one of them frozen, and a classifier."""
    model = nn.Sequential()
    model.add_module("stem", nn.Linear(8, 64))
    for name in ("early", "late"):
        stage = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64))
        model.add_module(name, stage)
    model.add_module("fc", nn.Linear(64, 40))
    model.get_submodule("early").requires_grad_(False)
    return model


def operated() -> surgery.Outcome:
    return surgery.replace_head(
        small(), 5, heads="fc", hidden=(16,), example=torch.zeros(2, 8), registry=Registry.of()
    )


def labels(page: Any, key: str) -> list[str]:
    """What stands in a chart, line by line as it is drawn."""
    found: list[str] = page.eval_on_selector_all(
        f"#plot-{key} .slice text", "all => all.map(one => one.textContent)"
    )
    return found


def fills(page: Any, key: str) -> dict[str, str]:
    """The colour of every part that is drawn, by what stands in it."""
    found: dict[str, str] = page.eval_on_selector_all(
        f"#plot-{key} .slice",
        """all => Object.fromEntries(all.map(one =>
            [one.querySelector('text')?.textContent, one.querySelector('path').style.fill]))""",
    )
    return found


def shown_rows(page: Any, section: str) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        f"#section-{section} tbody tr", "all => all.filter(r => !r.hidden).map(r => r.textContent)"
    )
    return [re.sub(r"\s+", " ", row).strip() for row in found]


def test_names_are_text(show: Opener):
    page = show(surgery.audit(hostile_model()), width=1600)
    text = page.inner_text("#section-modules")
    drawn = labels(page, "model")
    for name in map(clean, HOSTILE_NAMES):
        # A browser shows several spaces as one.
        assert re.sub(r"\s+", " ", name) in re.sub(r"\s+", " ", text)
        assert any(line.startswith(name) for line in drawn), name
    assert page.locator("img, a[href^=javascript], svg[onload]").count() == 0
    assert page.locator("#plot-model a").count() == 0


def test_the_policy_stops_what_is_not_the_pages_own(show: Opener):
    page = show(surgery.audit(nn.Linear(2, 2)))
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            document.body.append(Object.assign(new Image(), { src: "https://example.org/x.png" }));
        }"""
    )
    page.wait_for_timeout(50)
    assert page.evaluate("window.ran") is None
    blocked = [error for error in show.seen.errors if "Content Security Policy" in error]
    assert len(blocked) == 2
    assert show.seen.requests == []
    show.seen.errors.clear()


def test_names_in_a_notebook_are_text(show: Opener):
    page = show(surgery.audit(hostile_model()), page=False)
    text = re.sub(r"\s+", " ", page.text_content("body"))
    assert all(
        re.sub(r"\s+", " ", clean(name)) in re.sub(r"\s+", " ", text) for name in HOSTILE_NAMES
    )
    assert page.locator("script, img, a").count() == 0


def test_before_and_after_stand_side_by_side(show: Opener):
    page = show(operated())
    before, after = (page.locator(f"#plot-{key}").bounding_box() for key in ("before", "after"))
    assert before["y"] == after["y"]
    assert before["x"] + before["width"] < after["x"]
    assert any(line.startswith("◆ fc2,600") for line in labels(page, "before"))
    assert not any(line.startswith("◆ fc2,600") for line in labels(page, "after"))
    rows = shown_rows(page, "changes")
    assert rows[1].startswith("fc changed Linear -> Sequential 2,600 → 1,125 (-1,475)")
    assert [row.split()[1] for row in rows] == ["model)", "changed", "added", "added", "added"]
    checks = shown_rows(page, "checks")
    assert len(checks) >= 5
    assert all(row.startswith("ok ") for row in checks)


def test_a_click_zooms_in_both_and_the_trail_leads_out(show: Opener):
    page = show(operated())
    whole = labels(page, "before")
    assert any("stem" in line for line in whole)
    label = page.locator("#plot-before .slice text", has_text=re.compile("^late")).bounding_box()
    page.mouse.click(label["x"] + 2, label["y"] + label["height"] / 2)
    levels = [page.get_attribute(f"#plot-{key}", "data-level") for key in ("before", "after")]
    assert levels == ["late", "late"]
    captions = page.locator("figure:has(.plot) figcaption span").all_inner_texts()
    assert captions == ["8,577", "8,577"]
    assert not any("stem" in line for key in ("before", "after") for line in labels(page, key))
    assert page.locator("#trail button").all_inner_texts() == ["Sequential", "late"]
    page.locator("#trail button").first.click()
    assert labels(page, "before") == whole
    # What is shown already needs no way out, but a word on the way in.
    assert page.locator("#trail button").count() == 0
    assert page.inner_text("#trail") == "Click a part to see what is in it"


def test_the_keyboard_does_what_the_pointer_does(show: Opener):
    page = show(surgery.audit(small()))
    page.locator("button.zoom", has_text="late").focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#plot-model", "data-level") == "late"
    page.locator("#trail button").first.focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#plot-model", "data-level") == "Sequential"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    assert page.input_value("#search") == ""
    page.locator("button.fold[aria-label='Below late']").focus()
    page.keyboard.press("Enter")
    assert not any("64 " in row for row in shown_rows(page, "modules") if row.startswith("late."))


def test_search_leaves_the_rows_and_lights_the_parts_that_match(show: Opener):
    page = show(surgery.audit(small()))
    rows, colours = shown_rows(page, "modules"), fills(page, "model")
    page.fill("#search", "LATE")
    page.locator("#found", has_text="4 rows, 4 parts").wait_for()
    assert [row.split()[0] for row in shown_rows(page, "modules")] == ["late", "0", "1", "2"]
    faded = fills(page, "model")
    assert set(faded) == set(colours)
    changed = {label for label in faded if faded[label] != colours[label]}
    assert any(label.startswith("stem") for label in changed)
    assert not any(label.startswith("late") for label in changed)
    assert not page.locator("#section-memory").is_visible()
    page.keyboard.press("Escape")
    page.locator("#found").wait_for(state="hidden")
    assert shown_rows(page, "modules") == rows
    assert fills(page, "model") == colours


def test_a_load_shows_its_buckets(show: Opener):
    source = {f"module.{key}": value for key, value in small().state_dict().items()}
    source["module.fc.weight"] = torch.zeros(9, 64)
    source["extra"] = torch.zeros(1)
    with pytest.warns(PartialLoadWarning):
        outcome = surgery.load_weights(small(), source)
    page = show(outcome)
    bars = re.sub(r"\s+", " ", page.inner_text(".bars"))
    total = len(small().state_dict())
    assert f"loaded {total - 1}" in bars
    assert "shape mismatch 1" in bars
    assert "unexpected 1" in bars
    found = shown_rows(page, "model")
    assert len(found) == total
    assert "fc.weight shape mismatch module.fc.weight" in found
    # What fits no key and what has another shape are told apart.
    tones = page.eval_on_selector_all(
        ".bar:last-child .swatch", "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(tones)) == len(tones) == 3
    part = fills(page, "model")
    assert len({part[label] for label in part if label.startswith(("stem", "fc"))}) == 2


def test_light_and_dark_are_different_and_follow_the_reader(show: Opener):
    page = show(surgery.audit(small()), scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark, parts = page.evaluate(background), fills(page, "model")
    every = "[...document.querySelectorAll('#plot-model .slice path')].map(one => one.style.fill)"
    before = page.evaluate(every)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) != dark
    changed = f"before => {every}.every((fill, place) => fill !== before[place])"
    page.wait_for_function(changed, arg=before)
    light = fills(page, "model")
    assert set(light) == set(parts)
    assert all(light[label] != parts[label] for label in parts)


def test_a_phone_scrolls_one_way(show: Opener):
    values = [
        operated(),
        surgery.audit(hostile_model()),
        read({f"{'long' * 20}.{n}": torch.zeros(3) for n in range(3)}),
        Registry.of(),
    ]
    for value in values:
        page = show(value, width=390)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("#search").is_visible()
        page.close()


def test_no_word_is_torn_on_a_phone(show: Opener):
    page = show(operated(), width=390)
    heights = page.eval_on_selector_all(
        "#section-steps td.short span, #section-outputs td.short span",
        "all => all.map(one => one.getClientRects().length)",
    )
    assert set(heights) == {1}
    long = "long" * 20
    model = nn.ModuleDict({long: nn.ModuleDict({long: nn.Linear(2, 2)})})
    names = show(surgery.audit(model), width=390).locator("#section-modules th.name")
    assert max(box["width"] for box in (one.bounding_box() for one in names.all())) < 330
    # A finding is read without scrolling sideways.
    checks = "#section-checks .scroll"
    assert page.eval_on_selector(checks, "one => one.scrollWidth <= one.clientWidth")


@pytest.mark.parametrize("width", [390, 1280])
def test_what_holds_nearly_everything_is_no_level_of_a_chart(show: Opener, width: int):
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(6)))
    page = show(
        surgery.audit(nn.ModuleDict({"encoder": nn.ModuleDict({"layers": layers})})), width=width
    )
    # Three that hold all, six layers, and the two parts of each.
    assert page.locator("#plot-model .slice").count() == 3 + 6 + 12


def test_what_would_be_specks_on_a_phone_is_left_for_a_tap(show: Opener):
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(32)))
    page = show(surgery.audit(nn.ModuleDict({"layers": layers})), width=390)
    assert page.locator("#plot-model .slice").count() == 2 + 32
    page.locator("button.zoom", has_text="31").dispatch_event("click")
    assert page.locator("#plot-model .slice").count() == 3


def test_the_search_stays_in_sight(show: Opener):
    page = show(operated())
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert page.evaluate("scrollY") > 200
    assert page.locator("#search").bounding_box()["y"] < 60


def test_a_large_model_is_drawn_in_part_and_says_so(show: Opener):
    layers = (nn.Linear(4, 4, device="meta") for _ in range(900))
    page = show(surgery.audit(nn.Sequential(nn.Sequential(*layers))))
    # The model and its one child are drawn as well.
    assert len(labels(page, "model")) <= 600
    assert page.locator("#plot-model .slice").count() == 600
    assert "302 smaller parts are not drawn here" in page.inner_text("#section-charts")
    page.locator("button.fold").nth(1).click()
    assert len(shown_rows(page, "modules")) == 300
    page.locator("button.rest", has_text="Show all 902 rows").click()
    assert len(shown_rows(page, "modules")) == 902
    page.fill("#search", "0.899")
    page.locator("#found", has_text="1 row").wait_for()
    assert [row.split()[0] for row in shown_rows(page, "modules")] == ["899"]
