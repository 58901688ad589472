"""The status page in a real headless Chromium, with a real coordinator: it loads, follows the run and survives a restart."""

import asyncio
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect
from support.coordinator_harness import (
    HandClient,
    Served,
    pass_first_evaluation,
    serving,
    small_spec,
    until_phase,
    write_delta,
)
from support.process_harness import free_port
from support.run_states import change_state

from pluralllm.common.errors.tree import InUse, NotLoopback, WrongBase
from pluralllm.common.words.ids import ModelVersion, RoundNumber
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.observe.page_facts import MAX_POINTS, History, history_facts
from pluralllm.server.runs.round_sums import NewestSums
from pluralllm.v1 import resources_pb2 as rpb

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SPEC = small_spec(rounds=3, round={"evaluate_every": 1})
PATIENCE_MS = 15_000
WIDTHS = (390, 800, 1200, 1400, 1920)
CUT = """() => [
  ...[...document.querySelectorAll("html, header, section, .scroll, dd")].filter((e) => e.scrollWidth > e.clientWidth + 1),
  ...[...document.querySelectorAll("svg text")].filter((text) => {
    const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
    return own.left < all.left - 1 || own.right > all.right + 1 || own.top < all.top - 1 || own.bottom > all.bottom + 1;
  }),
].map((e) => e.textContent.slice(0, 40))"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture
async def browser_page() -> AsyncIterator[Page]:
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    async with async_playwright() as tools:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has no sandbox for root
        browser = await tools.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, *quiet])
        page = await browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        await browser.close()


async def play_round(served: Served, clients: tuple[HandClient, HandClient], folder: Path, spec: RunSpec) -> None:
    """Plays one round and its evaluation: ann's group is predicted well, ben's badly."""
    for seed, client in enumerate(clients):
        task = await client.task()
        path = folder / f"{client.name}-{task.round}"
        await client.push(task, path, write_delta(path, spec, seed + 10 * task.round), base_distance=0.3)
    for client, score in zip(clients, (0.8, 0.6), strict=True):
        await client.evaluate(await client.task(), score)


async def two_clients(served: Served) -> tuple[HandClient, HandClient]:
    return await served.client("ann"), await served.client("ben")


@needs_chromium
async def test_the_page_loads_follows_a_round_and_survives_a_restart(tmp_path: Path, browser_page: Page) -> None:
    port = free_port()
    complaints: list[str] = []
    browser_page.on("pageerror", lambda error: complaints.append(str(error)))
    async with serving(tmp_path / "state", page_listen=f"127.0.0.1:{port}") as served:
        clients = await two_clients(served)
        await served.create("r", SPEC)
        await pass_first_evaluation(*clients)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 1)
        await browser_page.goto(f"http://127.0.0.1:{port}/")
        await expect(browser_page.locator("#phase")).to_have_text("collecting")
        await expect(browser_page.locator("#round")).to_have_text("round 1 of 3")
        await expect(browser_page.locator("#countdown")).to_contain_text("to the deadline")
        await expect(browser_page.locator("#clients tr")).to_have_count(2)
        task, manifest = await clients[0].task(), write_delta(tmp_path / "wrong", SPEC, 1)
        with pytest.raises(WrongBase):
            await clients[0].begin(task, manifest, base_digest="0" * 64)
        await expect(browser_page.locator("#refusals")).to_contain_text("WRONG_BASE")

        await play_round(served, clients, tmp_path, SPEC)  # without any action on the page
        await expect(browser_page.locator("#round")).to_have_text("round 2 of 3")
        await expect(browser_page.locator("#worst")).to_have_text("group of ben 0.600")
        await expect(browser_page.locator("#groups tr").first).to_contain_text("▼ worst")
        await expect(browser_page.locator("#alignment polyline.worst")).to_have_count(1)
        await expect(browser_page.locator("#lineage tr")).to_have_count(2)
        await expect(browser_page.locator("#loss-chart circle")).to_have_count(1)
        await expect(browser_page.locator("#audit")).to_contain_text("StartRun")
    await expect(browser_page.locator("#link")).to_have_class("lost")

    async with serving(tmp_path / "state", page_listen=f"127.0.0.1:{port}") as served:
        clients = await two_clients(served)
        await expect(browser_page.locator("#link")).to_have_class("live")
        await play_round(served, clients, tmp_path, SPEC)
        await expect(browser_page.locator("#round")).to_have_text("round 3 of 3")
        await expect(browser_page.locator("#lineage tr")).to_have_count(3)
    assert complaints == []


@needs_chromium
async def test_a_group_is_chosen_by_keyboard_and_nothing_is_wider_than_a_phone(
    tmp_path: Path, browser_page: Page
) -> None:
    async with serving(tmp_path / "state", page_listen="127.0.0.1:0") as served:
        clients = await two_clients(served)
        await served.create("r", SPEC)
        await pass_first_evaluation(*clients)
        await play_round(served, clients, tmp_path, SPEC)
        await browser_page.set_viewport_size({"width": 360, "height": 740})
        await browser_page.goto(f"http://{(tmp_path / 'state' / 'page-address').read_text()}/")
        await expect(browser_page.locator("#groups button")).to_have_count(2)
        await browser_page.locator("#groups button").last.focus()
        await browser_page.keyboard.press("Enter")
        await expect(browser_page.locator("#alignment polyline.chosen")).to_have_count(1)
        await expect(browser_page.locator("#groups button").last).to_be_focused()
        for scheme in ("light", "dark"):
            await browser_page.emulate_media(color_scheme=scheme)
            wider = await browser_page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0
            back, text = await browser_page.evaluate(
                "[getComputedStyle(document.body.parentElement).backgroundColor, getComputedStyle(document.body).color]"
            )
            assert contrast(back, text) > 7


@needs_chromium
async def test_a_group_that_keeps_its_score_is_on_the_page_with_the_reason_and_members_with_their_weights(
    tmp_path: Path, browser_page: Page
) -> None:
    complaints: list[str] = []
    browser_page.on("pageerror", lambda error: complaints.append(str(error)))
    async with serving(tmp_path / "state", page_listen="127.0.0.1:0") as served:
        ann, ben = await two_clients(served)
        await served.create("r", SPEC)
        for client in (ann, ben):  # nobody reports a score of version 0
            await client.keep_scores(await client.task(), rpb.NOT_REPORTED_TOO_FEW_QUESTIONS)
        await until_phase(served, "r", rpb.RUN_PHASE_COLLECTING, 1)
        await browser_page.goto(f"http://{(tmp_path / 'state' / 'page-address').read_text()}/")
        await expect(browser_page.locator("#groups tr")).to_have_count(2)
        for row in (0, 1):
            await expect(browser_page.locator("#groups tr").nth(row)).to_contain_text("not reported: too few questions")
        await expect(browser_page.locator("#fairness")).to_have_text("–")
        titles = browser_page.locator("table[aria-label=Clients] th:visible")
        await expect(titles).to_have_text(
            ["client", "group", "state", "noise, as declared"]
        )  # the other columns say nothing yet
        for client, examples in ((ann, 10), (ben, 30)):
            path = tmp_path / client.name
            await client.push(await client.task(), path, write_delta(path, SPEC, 1), examples)
        await ann.evaluate(await ann.task(), 0.8)
        await ben.keep_scores(await ben.task(), rpb.NOT_REPORTED_BUDGET_SPENT)
        await expect(browser_page.locator("#groups tr").first).to_contain_text("0.800")
        await expect(browser_page.locator("#groups tr").last).to_contain_text("not reported: budget spent")
        await expect(browser_page.locator("#fairness")).to_have_text("1.0000 over 1 of 2 groups")
        await expect(browser_page.locator("#alignment polyline")).to_have_count(1)
        await expect(browser_page.locator("#clients tr").first).to_contain_text("25.0 %")
        await expect(browser_page.locator("#clients tr").last).to_contain_text("75.0 %")
        await expect(titles).to_have_text(["client", "group", "state", "weight", "noise, as declared"])
    assert complaints == []


@needs_chromium
async def test_a_thousand_rounds_of_a_hundred_groups_are_drawn(
    tmp_path: Path, browser_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = History(
        {version: {f"group {g:03}": 0.5 + g / 400 + version / 10_000 for g in range(100)} for version in range(1001)},
        {f"group {g:03}": "train" for g in range(100)},
        dict.fromkeys(range(1, 1001), 0.3),
    )

    async def grown(*_: object) -> History:
        return long

    monkeypatch.setattr("pluralllm.server.observe.page.Page._grown", grown)
    async with serving(tmp_path / "state", page_listen="127.0.0.1:0") as served:
        await served.create("r", small_spec(rounds=1000), start=False)
        run = served.parts.runs.get("r")
        change_state(run, evaluated=ModelVersion(1000), round=RoundNumber(1000))
        await browser_page.goto(f"http://{(tmp_path / 'state' / 'page-address').read_text()}/")
        await expect(browser_page.locator("#alignment polyline")).to_have_count(100)
        await expect(browser_page.locator("#groups tr")).to_have_count(10)
        await expect(browser_page.locator("#groups-pages")).to_contain_text("1–10 of 100")
        await browser_page.get_by_role("button", name="later rows of groups").press("Enter")
        await expect(browser_page.locator("#groups-pages")).to_contain_text("11–20 of 100")
        await expect(browser_page.locator("#groups tr").first).to_contain_text("group 010")
        await expect(browser_page.get_by_role("button", name="later rows of groups")).to_be_focused()
        await expect(browser_page.locator("#worst")).to_have_text("group 000 0.600")
        await expect(browser_page.locator("#alignment path.train")).to_have_count(1)
        for width in WIDTHS:
            await browser_page.set_viewport_size({"width": width, "height": 900})
            assert await browser_page.evaluate(CUT) == [], width
    facts_json = json.dumps(history_facts(run, long, (), (), NewestSums()))
    assert len(facts_json) < 300_000
    assert len(history_facts(run, long, (), (), NewestSums())["versions"]) == MAX_POINTS


def contrast(one: str, other: str) -> float:
    """Returns the contrast of two rgb(...) colours by their relative luminance (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def get(address: str, path: str, host: str | None = None) -> int:
    request = urllib.request.Request(f"http://{address}{path}", headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_the_page_is_read_only_for_this_machine_and_names_of_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", page_listen="127.0.0.1:0") as served:
        await served.create("r", SPEC, start=False)
        address = (tmp_path / "state" / "page-address").read_text()
        for path, host, code in (
            ("/api/runs", None, 200),
            ("/api/runs/r/history", None, 200),
            ("/api/runs/nobody/history", None, 404),
            ("/api/runs", "evil.example:80", 400),
            ("/../state", None, 404),
        ):
            assert await asyncio.to_thread(get, address, path, host) == code, path
        with pytest.raises(InUse):
            async with serving(tmp_path / "two", page_listen=address):
                pass
    with pytest.raises(NotLoopback):
        async with serving(tmp_path / "three", page_listen="0.0.0.0:0"):
            pass
