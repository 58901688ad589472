"use strict";
// Makes the page's elements, the tables that show one page of their rows, and the charts. Texts are never read as HTML.

const at = (id) => document.getElementById(id);
const ROWS = globalThis.innerWidth < 700 ? 5 : 10; // of a table at once
const pages = {}; // by table: the number of its page

function node(name, facts = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(facts)) {
    if (key === "class") made.className = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
const long = (text) => node("span", { class: "long" }, text); // a text that may break within a word
const row = (...cells) => node("tr", {}, ...cells.map((cell) => node("td", {}, cell)));

// Tables

// Shows one page of a table's rows. make: the row of an item. Only the rows of this page are made.
function fill(id, items, make, none) {
  const last = Math.max(0, Math.ceil(items.length / ROWS) - 1);
  const page = pages[id] = Math.min(pages[id] ?? 0, last);
  const rows = items.slice(page * ROWS, (page + 1) * ROWS).map(make);
  const body = at(id);
  body.replaceChildren(...(rows.length ? rows : [node("tr", { class: "none" }, node("td", { class: "empty", colspan: 9 }, none))]));
  label(body, rows);
  const turn = (words, to, name) => {
    const button = node("button", { type: "button", "aria-label": `${name} rows of ${id}` }, words);
    button.disabled = to < 0 || to > last;
    button.addEventListener("click", () => { pages[id] = to; fill(id, items, make, none); at(`${id}-pages`).querySelector(`[aria-label^=${name}]`)?.focus(); });
    return button;
  };
  at(`${id}-pages`).hidden = last === 0;
  at(`${id}-pages`).replaceChildren(
    turn("‹", page - 1, "earlier"), ` ${page * ROWS + 1}–${Math.min(items.length, (page + 1) * ROWS)} of ${items.length} `, turn("›", page + 1, "later"),
  );
}
// On a phone a row is a list of its cells, each with the title of its column. A column that says nothing leaves its room to the others.
function label(body, rows) {
  const titles = Array.from(body.closest("table").querySelectorAll("th"));
  titles.forEach((title, i) => {
    const cells = rows.map((made) => made.children[i]);
    const idle = i > 0 && rows.length > 0 && cells.every((cell) => ["", "–"].includes(cell?.textContent ?? ""));
    for (const one of [title, ...cells.filter(Boolean)]) one.hidden = idle;
    for (const cell of cells) cell?.setAttribute("data-title", title.textContent);
  });
}

// Charts

// Draws lines over two axes, which the coordinator has chosen (page_scales.py).
// lines: { name, kind, points, as }; as: "polyline" for one group, "path" for a mean. marks: { value, name }, lines across.
function chart(target, { lines, x: across, y: up, xTitle, yTitle, height, marks = [] }) {
  if (!across || !up) { target.replaceChildren(node("p", { class: "empty" }, "nothing yet")); return; }
  const width = Math.max(240, target.clientWidth), SVG = "http://www.w3.org/2000/svg";
  const draw = (name, facts, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const left = 48, right = 14, top = 26, bottom = 38;
  const place = (axis, value) => (value - axis.low) / (axis.high - axis.low);
  const x = (value) => left + place(across, value) * (width - left - right);
  const y = (value) => top + (1 - place(up, value)) * (height - top - bottom);
  const named = lines.filter((line) => line.points.length && line.kind !== "other").map((line) => `${line.name} ${line.points.at(-1)[1]}`);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${yTitle} by ${xTitle}, ${lines.length} lines. ${named.join("; ")}` });
  svg.append(draw("text", { x: 2, y: 12, class: "axis" }, yTitle));
  svg.append(draw("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle", class: "axis" }, xTitle));
  for (const value of up.ticks) {
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(up.digits)));
  }
  for (const value of across.ticks) {
    svg.append(draw("text", { x: x(value), y: height - bottom + 16, "text-anchor": value === across.low ? "start" : value === across.high ? "end" : "middle" }, String(value)));
  }
  for (const mark of marks) {
    svg.append(draw("line", { x1: left, x2: width - right, y1: y(mark.value), y2: y(mark.value), class: "mark" }));
    svg.append(draw("text", { x: width - right, y: y(mark.value) - 4, "text-anchor": "end" }, mark.name));
  }
  for (const line of lines) {
    if (!line.points.length) continue;
    const points = line.points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`);
    const made = line.as === "path" ? draw("path", { d: `M${points.join("L")}`, class: line.kind }) : draw("polyline", { points: points.join(" "), class: line.kind });
    made.append(draw("title", {}, line.name));
    svg.append(made);
    const [a, b] = line.points.at(-1);
    svg.append(draw("circle", { cx: x(a), cy: y(b), r: 2.6, class: line.kind }));
  }
  target.replaceChildren(svg);
}
// The lines that stand out, with their newest values; below the chart, where no name is cut.
function legend(target, lines) {
  target.replaceChildren(...lines.filter((line) => line.points.length).map((line) => node("li", { class: line.kind }, `${line.name} ${line.points.at(-1)[1].toFixed(3)}`)));
}
