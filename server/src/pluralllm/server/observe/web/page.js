"use strict";
// Draws a run: its state, which the coordinator streams, and its history, which is loaded anew when a version was evaluated or a
// round has ended.

const at = (id) => document.getElementById(id);
const SYMBOL = { done: "✓", working: "▶", assigned: "◷", lost: "▲", idle: "·" };
const WAIT_FIRST_MS = 500, WAIT_LAST_MS = 10000;
const SILENT_MS = 15000; // the coordinator sends a run's state every two seconds
let source = null, turn = 0, next = 0, silence = 0, wait = WAIT_FIRST_MS, state = null, history_ = null, seen = "", chosen = "", skew = 0;

function node(name, facts = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(facts)) {
    if (key === "class") made.className = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
const row = (...cells) => node("tr", {}, ...cells.map((cell) => node("td", {}, cell)));
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
const short = (digest) => node("code", { title: digest }, digest ? digest.slice(0, 10) : "–");
const score = (value) => value === null || value === undefined ? "–" : value.toFixed(3);
const change = (value) => value === null ? "–" : (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(3);

function amount(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = bytes, unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return (unit ? size.toFixed(1) : size) + " " + units[unit];
}
function span(seconds) {
  const left = Math.max(0, Math.round(seconds));
  return left < 120 ? `${left} s` : left < 7200 ? `${Math.round(left / 60)} min` : `${(left / 3600).toFixed(1)} h`;
}
function fill(id, rows, none) {
  at(id).replaceChildren(...(rows.length ? rows : [node("tr", {}, node("td", { class: "empty", colspan: 9 }, none))]));
}

// The run's state

function drawState() {
  at("phase").textContent = state.paused ? `${state.phase}, paused` : state.phase;
  at("round").textContent = state.phase === "ended" ? `${state.outcome} after ${state.round} rounds` : `round ${state.round} of ${state.rounds}`;
  at("next").textContent = state.next;
  at("reads").textContent = state.reads;
  at("trouble").hidden = !state.trouble;
  at("trouble").textContent = state.trouble;
  at("updates").textContent = state.slots ? `${state.updates} of ${state.slots}, quorum ${state.quorum}` : "–";
  at("version").replaceChildren(`${state.version} `, short(state.version_digest));
  at("bytes").textContent = `${amount(state.received_bytes)}, ${amount(state.sent_bytes)}`;
  fill("clients", state.clients.map(clientRow), "nobody has connected yet");
  fill("refusals", state.refusals.map((r) => row(clock(r.at_s), r.client, node("code", {}, r.code), r.message)), "none");
  drawTime();
}
function clientRow(client) {
  const late = client.reason && (client.state === "working" || client.state === "assigned" || client.state === "lost");
  const words = `${SYMBOL[client.state]} ${client.state}${client.stage && client.state === "working" ? ", " + client.stage : ""}`;
  return row(
    client.client,
    client.group + (client.role === "held_out" ? " (held out)" : ""),
    node("span", { class: late ? "late" : client.state }, words),
    client.state === "working" ? node("progress", { max: 1, value: client.progress, "aria-label": `progress of ${client.client}` }) : "",
    client.weight === null ? "–" : `${(100 * client.weight).toFixed(1)} %`,
    client.noise,
    node("span", { class: late ? "late" : "" }, client.reason),
  );
}
function drawTime() {
  if (!state) return;
  const now = Date.now() / 1000 - skew;
  const timed = state.deadline_s !== null;
  at("countdown").textContent = timed ? `${span(state.deadline_s - now)} to the deadline` : state.phase === "ended" ? "" : `for ${span(now - state.since_s)}`;
  at("time").hidden = !timed;
  if (timed) at("time").value = Math.min(1, (now - state.since_s) / Math.max(1, state.deadline_s - state.since_s));
}

// The run's history

function drawHistory() {
  const last = history_.versions.length - 1;
  const groups = history_.groups.map((g) => ({
    ...g, now: g.scores[last] ?? null, before: g.scores[last - 1] ?? null, first: g.scores[0] ?? null,
  })).sort((a, b) => (a.now ?? 2) - (b.now ?? 2));
  const worst = groups.find((g) => g.now !== null);
  const reporting = groups.filter((g) => g.now !== null).length, silent = groups.filter((g) => g.not_reported).length;
  const over = silent ? ` over ${reporting} of ${reporting + silent} groups` : "";
  at("worst").textContent = worst ? `${worst.group} ${score(worst.now)}` : "–";
  at("fairness").textContent = last >= 0 && history_.fairness[last] !== null ? history_.fairness[last].toFixed(4) + over : "–";
  at("context-gain").textContent = history_.context_gain || "–";
  at("sums").hidden = !history_.clipped;
  at("scores-in-sum").textContent = history_.scores_in_sum;
  at("clipped").textContent = history_.clipped;
  fill("groups", groups.map((g) => groupRow(g, g === worst)), "no version has been evaluated");
  const lines = groups.map((g) => ({
    name: g.group, kind: g === worst ? "worst" : g.group === chosen ? "chosen" : "",
    points: history_.versions.map((v, i) => [v, g.scores[i]]).filter(([, y]) => y !== null),
  }));
  lines.sort((a, b) => (a.kind === "worst") - (b.kind === "worst") || (a.kind === "chosen") - (b.kind === "chosen"));
  chart(at("alignment"), lines, "version", 260);
  chart(at("fairness-chart"), [{ name: "fairness index", kind: "plain", points: history_.versions.map((v, i) => [v, history_.fairness[i]]).filter(([, y]) => y !== null) }], "version", 130);
  chart(at("loss-chart"), [{ name: "loss", kind: "plain", points: history_.loss }], "round", 130);
  fill("lineage", history_.lineage.map((v) => row(v.version, short(v.digest), short(v.record), short(v.parent), v.updates)), "none");
  fill("rounds", history_.rounds.map((r) => row(r.round, r.outcome, r.clients, span(r.seconds), r.reason)), "none yet");
}
function groupRow(g, isWorst) {
  const button = node("button", { class: "group", type: "button", "aria-pressed": String(g.group === chosen) }, g.group);
  button.addEventListener("click", () => { chosen = chosen === g.group ? "" : g.group; drawHistory(); focusOn(g.group); });
  button.dataset.group = g.group;
  const name = node("span", {}, button, g.role === "held_out" ? " (held out)" : "", isWorst ? node("span", { class: "worst-mark" }, " ▼ worst") : "");
  const since = (from) => g.now === null || from === null ? null : g.now - from;
  return row(name, g.not_reported || score(g.now), change(since(g.before)), change(since(g.first)));
}
function focusOn(group) {
  document.querySelector(`button[data-group="${CSS.escape(group)}"]`)?.focus();
}

function chart(target, lines, unit, height) {
  const width = Math.max(240, target.clientWidth);
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (name, facts, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const all = lines.flatMap((line) => line.points);
  if (!all.length) { target.replaceChildren(node("p", { class: "empty" }, "nothing yet")); return; }
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const room = Math.max(0.005, (high - low) * 0.08);
  low -= room; high += room;
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const left = 44, right = 12, top = 8, bottom = 22;
  const x = (value) => left + (last === first ? 0.5 : (value - first) / (last - first)) * (width - left - right);
  const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
  const labelled = lines.filter((line) => line.kind === "worst" || line.kind === "chosen").map((line) => `${line.kind}: ${line.name}`);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${lines.length} lines by ${unit}. ${labelled.join(". ")}` });
  for (let step = 0; step <= 4; step += 1) {
    const value = low + ((high - low) * step) / 4;
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(high - low < 0.02 ? 4 : 3)));
  }
  svg.append(draw("text", { x: x(first), y: height - 5, "text-anchor": last === first ? "middle" : "start" }, `${unit} ${first}`));
  if (last !== first) svg.append(draw("text", { x: x(last), y: height - 5, "text-anchor": "end" }, String(last)));
  for (const line of lines) {
    if (!line.points.length) continue;
    const made = draw("polyline", { points: line.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "), class: line.kind });
    made.append(draw("title", {}, line.name));
    svg.append(made);
    const [a, b] = line.points.at(-1);
    svg.append(draw("circle", { cx: x(a), cy: y(b), r: 2.6, class: line.kind }));
    if (line.kind === "worst" || line.kind === "chosen") {
      svg.append(draw("text", { x: x(a) - 6, y: y(b) + (line.kind === "worst" ? 14 : -7), "text-anchor": "end", class: line.kind }, line.name));
    }
  }
  target.replaceChildren(svg);
}

// The connection to the coordinator

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(SILENT_MS) });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}
async function loadHistory() {
  const key = `${state.name} ${state.evaluated} ${state.version} ${state.round} ${state.phase}`;
  if (key === seen) return;
  seen = key;
  try {
    history_ = await get(`api/runs/${state.name}/history`);
    drawHistory();
    fill("audit", (await get("api/audit")).map((e) => row(clock(e.at_s), e.actor || "nobody known", e.action, e.object, e.result)), "nothing yet");
  } catch { seen = ""; }
}
function showLink(kind, words) {
  at("link").className = kind;
  at("link").textContent = words;
}
async function connect() {
  const mine = ++turn; // a later call makes this one void
  stop();
  try {
    const { federation, runs } = await get("api/runs");
    if (mine !== turn) return;
    at("federation").textContent = federation;
    const inAddress = location.hash.slice(1);
    const run = runs.find((r) => r.name === inAddress) ?? runs.find((r) => r.phase !== "ended") ?? runs[0];
    at("run").replaceChildren(...runs.map((r) => node("option", { value: r.name }, `${r.name} (${r.phase})`)));
    if (!run) { showLink("live", "no run yet"); at("next").textContent = "Make one: pluralllm run create NAME --start"; again(); return; }
    at("run").value = run.name;
    source = new EventSource(`api/runs/${run.name}/events`);
    source.onmessage = (message) => {
      try {
        state = JSON.parse(message.data);
        skew = Date.now() / 1000 - state.now_s;
        drawState();
      } catch { state = null; lose(); return; } // of something else
      wait = WAIT_FIRST_MS;
      showLink("live", "live");
      loadHistory();
      awaitMessage();
    };
    source.onerror = lose;
    awaitMessage();
  } catch { if (mine === turn) lose(); }
}
function awaitMessage() {
  clearTimeout(silence);
  silence = setTimeout(lose, SILENT_MS);
}
function stop() {
  if (source) source.close();
  clearTimeout(silence);
  clearTimeout(next);
}
function lose() {
  stop();
  showLink("lost", "the coordinator does not answer; trying again");
  again();
}
function again() {
  next = setTimeout(connect, wait);
  wait = Math.min(2 * wait, WAIT_LAST_MS);
}
at("run").addEventListener("change", () => { location.hash = at("run").value; });
window.addEventListener("hashchange", () => { seen = ""; chosen = ""; connect(); });
window.addEventListener("resize", () => { if (history_) drawHistory(); });
setInterval(drawTime, 1000);
connect();
