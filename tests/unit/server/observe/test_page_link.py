"""The page's connection to the coordinator, in node with a scripted browser: whatever answers, the page tries again."""

import json
import shutil
import subprocess
from importlib import resources

import pytest

NODE = shutil.which("node")
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="no node here: apt-get install nodejs"),
    pytest.mark.seconds,
]
LIMIT_S = 20
# A document of elements that accept everything, a clock that the script moves, and answers that the script chooses.
BROWSER = """
const links = [], opened = []; let timers = [], now = 0, number = 0;
function element() {
  const known = { classList: {}, children: [], addEventListener: (kind, act) => { known[`on${kind}`] = act; } };
  return new Proxy(known, { get: (o, k) => k in o ? o[k] : k === Symbol.toPrimitive ? () => "" : () => element(),
    set: (o, k, v) => { o[k] = v; return true; } });
}
const elements = new Map();
globalThis.document = { createElement: element, createElementNS: element,
  getElementById: (id) => { if (!elements.has(id)) elements.set(id, element()); return elements.get(id); } };
globalThis.window = { addEventListener: (kind, act) => { window[kind] = act; } };
globalThis.location = { hash: "" };
globalThis.setTimeout = (act, wait) => { timers.push({ id: ++number, at: now + wait, act }); return number; };
globalThis.clearTimeout = (id) => { timers = timers.filter((timer) => timer.id !== id); };
globalThis.setInterval = () => 0;
globalThis.EventSource = class {
  constructor(path) { this.path = path; this.open = true; opened.push(this); }
  close() { this.open = false; }
  addEventListener(kind, act) { this[`on${kind}`] = act; }
};
const settle = () => new Promise((done) => setImmediate(done));
async function pass(seconds) {
  const end = now + 1000 * seconds;
  for (;;) {
    const due = timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
    if (!due) break;
    clearTimeout(due.id); now = due.at; due.act(); await settle();
  }
  now = end;
}
const good = { ok: true, json: async () => ({ federation: "f", runs: [{ name: "r", phase: "collecting" }] }) };
const STATE = JSON.stringify({ now_s: 0, phase: "collecting", round: 1, rounds: 2, next: "", trouble: "", slots: 2,
  updates: 0, quorum: 1, version: 0, version_digest: "", received_bytes: 0, sent_bytes: 0, clients: [], refusals: [],
  deadline_s: null, since_s: 0, evaluated: null, name: "r", groups: [], fairness: null });
let calls = 0, answer = async () => good;
globalThis.fetch = (path) => { calls += 1; return answer(path); };
const link = () => document.getElementById("link").className;
const check = (holds, what) => { if (!holds) { console.error(what); process.exit(1); } };
"""


def in_browser(script: str) -> None:
    """Runs the page's script and then `script` in node. Fails with the text of the first check that does not hold."""
    web = resources.files("pluralllm.server.observe").joinpath("web")
    page = "\n".join(web.joinpath(name).read_text() for name in ("drawing.js", "page.js"))
    assert NODE is not None
    whole = f"{BROWSER}\n{page}\n(async () => {{ await settle(); {script} process.exit(0); }})();"
    result = subprocess.run([NODE, "-e", whole], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "answer",
    [
        *(f"async () => ({{ ok: false, status: {status} }})" for status in (400, 401, 403, 404, 429, 500, 502, 503)),
        "async () => { throw new TypeError('failed') }",
        "async () => ({ ok: true, json: async () => { throw new SyntaxError('HTML') } })",
        "async () => ({ ok: true, json: async () => null })",
        "async () => ({ ok: true, json: async () => ({ runs: 7 }) })",
    ],
)
def test_an_answer_of_something_else_is_shown_and_tried_again_until_the_coordinator_answers(answer: str) -> None:
    in_browser(f"""
        opened.at(-1).onmessage({{ data: STATE }}); check(link() === "live", "is not live at first");
        const bad = {answer}; answer = bad;
        opened.at(-1).onerror(); check(link() === "lost", "does not show that the link is lost");
        const before = calls; await pass(60);
        check(calls - before >= 6 && calls - before <= 12, `tried ${{calls - before}} times in a minute`);
        answer = async () => good; await pass(11);
        opened.at(-1).onmessage({{ data: STATE }}); check(link() === "live", "does not come back");
        check(opened.filter((source) => source.open).length === 1, "has more than one stream");
    """)


@pytest.mark.parametrize("data", ["<html>", "null", "{}", "[]"])
def test_a_message_of_something_else_is_not_shown_as_live(data: str) -> None:
    in_browser(f"""
        opened.at(-1).onmessage({{ data: {json.dumps(data)} }}); check(link() === "lost", "shows it as live");
        await pass(1); opened.at(-1).onmessage({{ data: STATE }}); check(link() === "live", "does not come back");
    """)


def test_a_stream_that_hangs_is_opened_again() -> None:
    in_browser("""
        for (let beat = 0; beat < 10; beat += 1) { opened.at(-1).onmessage({ data: STATE }); await pass(14); }
        check(opened.length === 1 && link() === "live", "gives a stream up that lives");
        await pass(2); check(link() === "lost" || opened.length === 2, "waits for ever");
        await pass(1); check(opened.length === 2 && !opened[0].open, "does not open the stream again");
    """)


def test_another_run_chosen_while_the_link_is_lost_makes_no_second_loop() -> None:
    in_browser("""
        answer = async () => ({ ok: false, status: 503 }); opened.at(-1).onerror();
        for (let change = 0; change < 5; change += 1) { window.hashchange(); await settle(); }
        const before = calls; await pass(60); check(calls - before <= 12, `${calls - before} calls in a minute`);
    """)


def test_a_reader_that_is_refused_is_told_how_to_come_back() -> None:
    in_browser("""
        const words = () => document.getElementById("link").textContent;
        answer = async () => ({ ok: false, status: 401 }); opened.at(-1).onerror(); await pass(60);
        check(words().includes("pluralllm page"), words());
        answer = async () => ({ ok: false, status: 503 }); await pass(60);
        check(words().includes("does not answer"), words());
    """)


def test_a_stream_too_many_is_shown_and_not_tried_again() -> None:
    in_browser("""
        opened.at(-1).onfull({ data: "{}" }); const before = calls; await pass(60);
        check(calls === before && opened.length === 1 && !opened[0].open, "tries again");
        check(document.getElementById("link").textContent.includes("too many pages"), "does not say why");
    """)


def test_the_list_of_runs_moves_by_as_many_runs_as_the_coordinator_says() -> None:
    in_browser("""
        const listed = { ...(await good.json()), of: 20, page: 7 }, asked = [];
        answer = async (path) => { asked.push(path); return { ok: true, json: async () => listed }; };
        window.hashchange(); await settle();
        const list = document.getElementById("run");
        for (const turned of [">", ">", "<"]) { list.value = turned; list.onchange(); await settle(); }
        check(asked.join(" ") === [0, 7, 14, 7].map((after) => `api/runs?after=${after}`).join(" "), asked.join(" "));
    """)


def test_archived_runs_are_listed_when_they_are_chosen_and_left_out_again() -> None:
    in_browser("""
        const listed = { ...(await good.json()), of: 9, page: 7, archived: 3 }, asked = [];
        let offered = "";
        const list = document.getElementById("run");
        list.replaceChildren = (...options) => { offered = options.map((option) => option.words).join(", "); };
        document.createElement = () => {
          const made = element(); made.append = (...parts) => { made.words = parts.join(""); }; return made;
        };
        answer = async (path) => { asked.push(path); return { ok: true, json: async () => listed }; };
        window.hashchange(); await settle();
        check(offered.includes("3 archived runs"), offered); check(!offered.includes("without"), offered);
        for (const turned of [">", "+"]) { list.value = turned; list.onchange(); await settle(); }
        check(list.size > 1, "the list is not open");
        check(offered.includes("without archived runs"), offered); check(!offered.includes("3 archived"), offered);
        list.value = "-"; list.onchange(); await settle();
        check(offered.includes("3 archived runs") && list.size === 1, offered);
        const expected = ["0", "7", "0&archived=1", "0"].map((end) => `api/runs?after=${end}`);
        check(asked.join(" ") === expected.join(" "), asked.join(" "));
    """)


def test_the_run_in_the_pages_address_is_asked_for_because_it_may_be_archived() -> None:
    in_browser("""
        const listed = { ...(await good.json()), of: 1, page: 7, archived: 1 }, asked = [];
        listed.runs.push({ name: "old", phase: "ended", state: "cancelled (archived)" });
        answer = async (path) => { asked.push(path); return { ok: true, json: async () => listed }; };
        location.hash = "#old"; window.hashchange(); await settle();
        check(asked[0] === "api/runs?after=0&run=old", asked[0]);
        check(opened.at(-1).path === "api/runs/old/events", opened.at(-1).path);
    """)


@pytest.mark.parametrize(("archived", "words"), [(0, "no run yet"), (2, "archived runs only")])
def test_a_page_without_a_run_says_whether_there_are_archived_ones(archived: int, words: str) -> None:
    in_browser(f"""
        const list = document.getElementById("run"); list.options = [];
        list.replaceChildren = (...options) => {{ list.options = options; }};
        answer = async () => ({{ ok: true, json: async () => ({{ runs: [], of: 0, page: 7, archived: {archived} }}) }});
        window.hashchange(); await settle();
        const words = document.getElementById("link").textContent; check(words === {json.dumps(words)}, words);
    """)


def test_the_page_says_who_reads() -> None:
    in_browser("""
        check(document.getElementById("reader").textContent === "", "needs a reader");
        const listed = { ...(await good.json()), reader: { name: "eye", role: "observer" } };
        answer = async () => ({ ok: true, json: async () => listed }); window.hashchange(); await settle();
        check(document.getElementById("reader").textContent === "reads as eye (observer)", "does not say who reads");
    """)


@pytest.mark.parametrize(
    ("status", "enters", "shown"),
    [(204, True, "enter"), (401, False, "enter"), (200, False, "enter#secret"), (503, False, "enter#secret")],
)
def test_the_entry_sends_the_token_in_a_body_and_leaves_it_nowhere_unless_it_can_be_sent_again(
    status: int, enters: bool, shown: str
) -> None:
    script = resources.files("pluralllm.server.observe").joinpath("web", "enter.js").read_text()
    browser = f"""
        const sent = [], seen = {{}};
        globalThis.location = {{ hash: "#secret", replace: (path) => {{ seen.went = path; }} }};
        globalThis.history = {{ replaceState: (state, title, path) => {{ seen.shown = path; }} }};
        globalThis.document = {{ getElementById: () => seen }};
        globalThis.fetch = async (path, how) => {{
          sent.push([path, how.method, how.body, seen.shown]);
          return {{ status: {status} }};
        }};
    """
    end = (
        "setImmediate(() => console.log(JSON.stringify([sent, seen.went ?? '', seen.textContent ?? '', seen.shown])));"
    )
    assert NODE is not None
    result = subprocess.run(
        [NODE, "-e", browser + script + end], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    sent, went, words, last_shown = json.loads(result.stdout)
    assert sent == [["session", "POST", "secret", "enter"]]
    assert (went, "pluralllm page" in words) == (("./", False) if enters else ("", True))
    assert last_shown == shown
    assert ("used or older" in words) is (status == 401), "only then the link is of no use"
