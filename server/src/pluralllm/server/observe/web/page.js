"use strict";
// Draws a run: its state, which the coordinator streams, and its history, which is loaded anew when a version was evaluated or a
// round has ended.

const SYMBOL = { done: "✓", working: "▶", assigned: "◷", lost: "▲", idle: "·", away: "○", revoked: "✕" };
const ORDER = ["lost", "assigned", "working", "away", "revoked", "idle", "done"];
const ROLE = { train: "training", held_out: "held out" };
const LIST_EVERY_MS = 30000;
const WAIT_FIRST_MS = 500, WAIT_LAST_MS = 10000;
const SILENT_MS = 15000; // the coordinator sends a run's state every two seconds
let source = null, turn = 0, next = 0, silence = 0, wait = WAIT_FIRST_MS, state = null, history_ = null, seen = "", chosen = "", skew = 0, older = 0, archived = 0, pageSize = 0, listed = 0;

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
const short = (digest) => node("code", { title: digest }, digest ? digest.slice(0, 10) : "–");
const score = (value) => value === null || value === undefined ? "–" : value.toFixed(3);
const change = (value) => value === null ? "–" : (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(3);
const named = (run) => `${run.name} (${run.state})`;

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
// The run's state

function drawState() {
  const over = state.phase === "ended";
  at("phase").textContent = over ? "ended" : state.state;
  at("round").textContent = over ? `${state.state} after ${state.round} rounds` : `round ${state.round} of ${state.rounds}`;
  at("next").textContent = state.next;
  at("reads").textContent = state.reads;
  at("trouble").hidden = !state.trouble;
  at("trouble").textContent = state.trouble;
  at("updates").textContent = state.slots ? `${state.updates} of ${state.slots}, quorum ${state.quorum}` : "–";
  at("version").replaceChildren(`${state.version} `, short(state.version_digest));
  at("bytes").textContent = `${amount(state.received_bytes)}, ${amount(state.sent_bytes)}`;
  at("people").textContent = state.people;
  const first = (client) => ORDER.indexOf(client.state) - (client.reason ? 100 : 0); // those with a reason first
  fill("clients", [...state.clients].sort((a, b) => first(a) - first(b)), clientRow, "nobody has connected yet");
  fill("refusals", state.refusals, (r) => row(clock(r.at_s), long(r.client), node("code", {}, r.code), long(r.message)), "none");
  const option = Array.from(at("run").options).find((one) => one.value === state.name);
  if (option) option.textContent = named(state);
  drawTime();
}
function clientRow(client) {
  const late = client.reason && client.state !== "done" && client.state !== "idle";
  const words = `${SYMBOL[client.state] ?? ""} ${client.state}${client.stage && client.state === "working" ? ", " + client.stage : ""}`;
  const bar = client.state === "working" ? [node("progress", { max: 1, value: client.progress, "aria-label": `progress of ${client.client}` })] : [];
  return row(
    long(client.client),
    long(`${client.group}${client.role === "held_out" ? " (held out)" : ""}`),
    node("span", { class: late ? "late" : client.state }, words, ...bar),
    node("span", { class: late ? "late long" : "long" }, client.reason),
    client.weight === null ? "–" : `${(100 * client.weight).toFixed(1)} %`,
    long(client.noise),
  );
}
function drawTime() {
  if (!state) return;
  const now = Date.now() / 1000 - skew;
  const timed = state.deadline_s !== null;
  at("countdown").textContent = timed ? `${span(state.deadline_s - now)} to the deadline` : state.phase === "ended" ? "" : `for ${span(now - state.since_s)}`;
  at("time").hidden = !timed;
  const rounds = history_?.name === state.name && state.phase !== "ended" ? state.rounds - state.round : 0;
  at("left").textContent = rounds > 0 && history_.pace_s ? `${rounds} more ${rounds === 1 ? "round" : "rounds"}, about ${span(rounds * history_.pace_s)} at the present pace` : "";
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
  fill("groups", groups, (g) => groupRow(g, g === worst), "no version has been evaluated");
  drawCharts(groups, worst);
  fill("lineage", history_.lineage, (v) => row(v.version, short(v.digest), short(v.record), short(v.parent), v.updates), "none");
  fill("rounds", history_.rounds, (r) => row(r.round, r.outcome, r.clients, span(r.seconds), long(r.reason)), "none yet");
}
function drawCharts(groups, worst) {
  const by = (values) => history_.versions.map((v, i) => [v, values[i]]).filter(([, y]) => y !== null);
  const axes = history_.axes, x = axes.versions, xTitle = "model version";
  const kind = (g) => g === worst ? "worst" : g.group === chosen ? "chosen" : g.role === "held_out" ? "other unseen" : "other";
  const lines = groups.map((g) => ({ name: g.group, kind: kind(g), points: by(g.scores) }));
  const apart = lines.filter((line) => line.kind === "worst" || line.kind === "chosen");
  for (const line of apart) line.name = `${line.kind}: ${line.name}`;
  lines.sort((a, b) => apart.indexOf(a) - apart.indexOf(b));
  const several = Object.keys(history_.means).filter((role) => groups.filter((g) => g.role === role).length > 1);
  const means = several.map((role) => ({ name: `mean of the ${ROLE[role]} groups`, kind: role, as: "path", points: by(history_.means[role]) }));
  means.push({ name: "mean without the groups' answers", kind: "baseline", as: "path", points: by(history_.without_context) });
  chart(at("alignment"), { lines: [...lines, ...means], x, y: axes.alignment, xTitle, yTitle: "alignment score", height: 300 });
  legend(at("alignment-legend"), [...means, ...apart]);
  const one = (name, points) => [{ name, kind: "plain", as: "polyline", points }];
  const small = { x, xTitle, height: 190 };
  const least = { value: history_.least_gain, name: "below: ignores the group" };
  chart(at("gain-chart"), { ...small, lines: one("mean context gain", by(history_.gains)), y: history_.gains.some((gain) => gain !== null) ? axes.gains : null, yTitle: "score with minus without answers", marks: [least] });
  chart(at("fairness-chart"), { ...small, lines: one("fairness index", by(history_.fairness)), y: axes.fairness, yTitle: "Jain's index, 1 is even" });
  chart(at("loss-chart"), { ...small, lines: one("loss", history_.loss), x: axes.rounds, y: axes.loss, xTitle: "round", yTitle: "Jensen-Shannon distance" });
}
function groupRow(g, isWorst) {
  const button = node("button", { class: "group", type: "button", "aria-pressed": String(g.group === chosen) }, g.group);
  button.addEventListener("click", () => { chosen = chosen === g.group ? "" : g.group; drawHistory(); focusOn(g.group); });
  button.dataset.group = g.group;
  const name = node("span", { class: "long" }, button, isWorst ? node("span", { class: "worst-mark" }, " ▼ worst") : "");
  const since = (from) => g.now === null || from === null ? null : g.now - from;
  return row(name, ROLE[g.role] ?? g.role, g.not_reported || score(g.now), g.gain === null ? "–" : change(g.gain), change(since(g.before)), change(since(g.first)));
}
function focusOn(group) {
  document.querySelector(`button[data-group="${CSS.escape(group)}"]`)?.focus();
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
  listed = 0; // a run has changed its state
  try {
    history_ = await get(`api/runs/${state.name}/history`);
    drawHistory();
    fill("audit", await get("api/audit"), (e) => row(clock(e.at_s), long(e.actor || "nobody known"), e.action, long(e.object), long(e.result)), "nothing yet");
  } catch { seen = ""; }
}
function showLink(kind, words) {
  at("link").className = kind;
  at("link").textContent = words;
}
// Fills the list of runs, which has a page of them, and returns this page.
async function listRuns() {
  const run = location.hash.slice(1); // it may be an archived one
  const query = new URLSearchParams({ after: older, ...(archived && { archived }), ...(run && { run }) });
  const answer = await get(`api/runs?${query}`);
  const { federation, reader, runs, of } = answer;
  pageSize = answer.page ?? pageSize;
  const option = (value, words) => node("option", { value }, words);
  const options = runs.map((r) => option(r.name, named(r)));
  if (older) options.unshift(option("<", "newer runs …"));
  if (older + runs.length < of) options.push(option(">", `${of - older - runs.length} older runs …`));
  if (archived) options.push(option("-", "without archived runs …"));
  else if (answer.archived) options.push(option("+", `${answer.archived} archived runs …`));
  if (state && source && !runs.some((r) => r.name === state.name)) options.unshift(option(state.name, named(state)));
  at("federation").textContent = federation;
  at("reader").textContent = reader ? `reads as ${reader.name} (${reader.role})` : "";
  at("run").replaceChildren(...options);
  if (state && source) at("run").value = state.name;
  at("run").size = older || archived ? Math.min(options.length, 12) : 1;
  listed = Date.now();
  return runs;
}
async function connect() {
  const mine = ++turn; // a later call makes this one void
  stop();
  try {
    const runs = await listRuns();
    if (mine !== turn) return;
    const inAddress = location.hash.slice(1);
    const run = runs.find((r) => r.name === inAddress) ?? runs.find((r) => r.phase !== "ended") ?? runs[0];
    if (!run) { showLink("live", at("run").options.length ? "archived runs only" : "no run yet"); at("next").textContent = "Make one: pluralllm run create NAME --start"; again(); return; }
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
      if (Date.now() - listed > LIST_EVERY_MS) { listed = Date.now(); listRuns().catch(() => {}); }
      awaitMessage();
    };
    source.addEventListener("full", () => { // another try would change nothing
      stop();
      showLink("lost", "you have too many pages open; close one and load this page again");
    });
    source.onerror = lose;
    awaitMessage();
  } catch (error) { if (mine === turn) lose(error); }
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
function lose(error) {
  stop();
  const refused = ["401", "403"].includes(error?.message); // only the page for other machines refuses a reader
  showLink("lost", refused ? "your session has ended; type: pluralllm page" : "the coordinator does not answer; trying again");
  again();
}
function again() {
  next = setTimeout(connect, wait);
  wait = Math.min(2 * wait, WAIT_LAST_MS);
}
at("run").addEventListener("change", () => {
  const run = at("run").value;
  if (!["<", ">", "+", "-"].includes(run)) { location.hash = run; return; }
  if (run === "+" || run === "-") { archived = run === "+" ? 1 : 0; older = 0; }
  else older = Math.max(0, older + (run === ">" ? pageSize : -pageSize));
  listRuns().catch(lose);
});
window.addEventListener("hashchange", () => { seen = ""; chosen = ""; connect(); });
window.addEventListener("resize", () => { if (history_) drawHistory(); });
setInterval(drawTime, 1000);
connect();
