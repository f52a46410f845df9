"use strict";
// The page keeps nothing but what it was sent last. Text goes in as text: nothing here makes HTML.
const at = (id) => document.getElementById(id);
let csrf = document.querySelector("meta[name=csrf]").content;
const mayChange = document.querySelector("meta[name=may-change]").content === "yes";
let shown = "";

// Names and reasons come from others: what reorders or hides text is written out, as terminals show it.
const plain = (text) => String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

function fill(id, rows) {
  // Rows are kept, so that the focus stays where it is.
  const body = at(id).tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, i) => {
    const line = body.rows[i] || body.insertRow();
    line.className = row.kind || "";
    row.cells.forEach((cell, j) => put(line.cells[j] || line.insertCell(), cell));
  });
}

function put(cell, value) {
  const is = value !== null && typeof value === "object" ? value : { text: value };
  cell.className = is.number ? "number" : "";
  const tag = is.href ? "A" : is.max ? "PROGRESS" : "";
  if (!tag) {
    const text = is.text === null || is.text === undefined ? "-" : plain(is.text);
    if (cell.textContent !== text || cell.firstElementChild) cell.textContent = text;
    return;
  }
  let inner = cell.firstElementChild;
  if (!inner || inner.tagName !== tag) {
    inner = document.createElement(tag);
    cell.replaceChildren(inner);
  }
  if (is.href) { inner.href = is.href; inner.textContent = plain(is.text); }
  else { inner.max = is.max; inner.value = is.value; inner.setAttribute("aria-label", is.text); }
}

// What a run began with comes with its status, its branches with its history.
const facts = { status: [], history: [] };
function putFacts(part, rows) {
  // Unchanged text stays, so that it can be selected while the run goes on.
  if (JSON.stringify(rows) === JSON.stringify(facts[part])) return;
  facts[part] = rows;
  const cells = [...facts.status, ...facts.history].flatMap(([name, text]) => [["dt", name], ["dd", text]]);
  at("facts").replaceChildren(...cells.map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: plain(text) })));
}

// A run of an analysis has a result in place of curves; its text is asked for once, when it has ended.
let resultOf = "";
async function putResult(data, base) {
  const there = data.is_analysis && data.state === "completed" && mayChange;
  at("result-part").hidden = !data.is_analysis;
  at("curves-part").hidden = data.is_analysis;
  at("rounds").className = at("clients").className = data.is_analysis ? "analysis" : "";
  at("result-file").hidden = !there;
  at("result-file").href = `${base}/result`;
  at("result-file").download = `${data.run}-result.json`;
  const wanted = there ? `${data.run_id} ${data.version}` : "";
  at("no-result").textContent = wanted ? "" : !mayChange ? "The result is shown to those with the full token."
    : data.state === "training" ? "The result is shown when the last step is done." : "The run has no result.";
  if (wanted === resultOf) return;
  resultOf = wanted;
  at("result").textContent = "";
  if (!wanted) return;
  const answer = await fetch(`${base}/result.txt`).catch(() => null);
  const text = answer === null ? "" : answer.ok ? await answer.text() : (await answer.json()).message;
  if (resultOf !== wanted) return;
  at("result").textContent = text.split("\n").map(plain).join("\n");
  // The next status asks again.
  if (!answer || !answer.ok) resultOf = "";
}

const number = (value, digits) => ({ number: true, text: value === null || value === undefined ? "-" : digits === undefined ? value : Number(value).toFixed(digits) });
const bytes = (n) => !n ? "-" : n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`;

const show = {
  hello(data) { csrf = data.csrf; },
  trouble(data) { at("trouble").textContent = plain(data.text); at("trouble").hidden = !data.text; },
  status(data) {
    shown = data.run;
    document.title = `${data.overall} - fl-queue`;
    const headline = plain(data.headline);
    if (at("headline").textContent !== headline) at("headline").textContent = headline;
    at("left").textContent = data.left_s === null ? "" : `${data.left_s} s to the deadline`;
    at("reason").textContent = data.state === "training" ? "" : plain(data.reason);
    at("waiting").replaceChildren(...data.waiting_for.map((text) => Object.assign(document.createElement("li"), { textContent: plain(text) })));
    putFacts("status", data.facts);
    const base = `/api/v1/runs/${encodeURIComponent(data.run)}`;
    at("actions").hidden = !data.run;
    at("cancel").hidden = !mayChange || data.state !== "training";
    at("resume").hidden = !mayChange || !["failed", "cancelled"].includes(data.state);
    at("model").hidden = !mayChange || data.version === null || data.is_analysis;
    at("csv").hidden = !data.run;
    at("model").href = `${base}/model.safetensors`;
    at("csv").href = `${base}/history.csv`;
    putResult(data, base);
  },
  runs(data) {
    fill("runs", data.map((run) => ({ kind: run.shown ? "shown" : "", cells: [
      { text: run.name, href: `/?run=${encodeURIComponent(run.name)}` }, run.state,
      number(run.version), run.doing] })));
  },
  clients(data) {
    fill("clients", data.map((one) => ({ kind: one.alive ? "" : "bad", cells: [
      one.client, one.alive ? "yes" : "no", one.last_seen_s === null ? "never" : `${one.last_seen_s} s ago`, number(one.num_examples || null),
      one.answer ? `update ${one.answer}` : one.doing,
      one.epochs ? { max: one.epochs, value: one.answer ? one.epochs : one.epoch, text: `epoch ${one.epoch} of ${one.epochs}` } : "-",
      { number: true, text: bytes(one.update_bytes) }] })));
  },
  history(data) {
    const rounds = data ? data.rounds : [];
    fill("rounds", rounds.map((row) => ({ kind: row.version === null ? "bad" : "", cells: [
      number(row.round), row.outcome, number(row.version), number(row.accuracy, 4), number(row.loss, 4), row.judged_by || "-",
      number(row.accepted), number(row.late), number(row.rejected), number(row.seconds, 1), row.reason] })));
    putFacts("history", data ? data.facts : []);
    curves = data;
    draw();
  },
  log(data) {
    const list = at("log");
    if (data.fresh) list.replaceChildren();
    for (const [, text] of data.lines) list.prepend(Object.assign(document.createElement("li"), { textContent: plain(text) }));
    while (list.children.length > 300) list.lastChild.remove();
  },
};

let curves = null;
const charts = {};

function draw() {
  const logged = curves ? [...new Set(Object.values(curves.training).flatMap(Object.keys))].sort().slice(0, 8) : [];
  const wanted = logged.map((name) => `logged-${name}`);
  document.querySelectorAll(".logged").forEach((place) => { if (!wanted.includes(place.id)) { charts[place.id]?.destroy(); delete charts[place.id]; place.remove(); } });
  for (const id of wanted) if (!at(id)) at("loss").parentElement.append(Object.assign(document.createElement("div"), { id, className: "logged" }));
  const any = [["accuracy"], ["loss"], ...logged.map((name) => [name, `logged-${name}`])].map((one) => chart(...one)).some(Boolean);
  at("no-curves").hidden = any;
}

function chart(name, id = name) {
  const where = at(id);
  const judged = id === name;
  const lines = curves ? (judged ? [["central test", curves.test, 3, name], ["clients' validation", curves.validation, 2, name],
    ["personal models", curves.validation, 1.5, `personal_${name}`], ["fine-tuned", curves.validation, 1.5, `finetuned_${name}`],
    ...Object.entries(curves.clients).slice(0, 10).map(([client, line]) => [client, line, 1, name])]
    : [["training", curves.training, 2, name]])
    .filter(([, line, , metric]) => Object.values(line).some((found) => metric in found)) : [];
  if (charts[id]) charts[id].destroy();
  charts[id] = null;
  if (!lines.length) return false;
  const versions = [...new Set(lines.flatMap(([, line]) => Object.keys(line).map(Number)))].sort((a, b) => a - b);
  const style = getComputedStyle(document.documentElement);
  const colour = (token) => style.getPropertyValue(token).trim();
  const axis = { stroke: colour("--text"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
  charts[id] = new uPlot({
    title: plain(name), width: where.clientWidth || 320, height: 260, scales: { x: { time: false } },
    axes: [{ ...axis, label: "version", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }, axis],
    series: [{ label: "version" }, ...lines.map(([label, , width], i) => ({
      label: plain(label), width, stroke: width >= 2 ? colour(width > 2 ? "--blue" : "--red") : `hsl(${(i * 67) % 360} 45% 55%)`, spanGaps: true }))],
  }, [versions, ...lines.map(([, line, , metric]) => versions.map((version) => line[version]?.[metric] ?? null))], where);
  where.setAttribute("role", "img");
  where.setAttribute("aria-label", `${plain(name)} by version; the table of rounds has the numbers`);
  return true;
}

async function act(what) {
  const answer = await fetch(`/api/v1/runs/${encodeURIComponent(shown)}/${what}`, {
    method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf }, body: "{}" });
  if (!answer.ok) show.trouble({ text: (await answer.json()).message });
}

function ask(text) {
  const dialog = at("ask");
  at("question").textContent = plain(text);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

at("cancel").addEventListener("click", async () => { if (await ask(`Cancel run ${shown}? Its model and history stay.`)) act("cancel"); });
at("resume").addEventListener("click", () => act("resume"));
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

const run = new URLSearchParams(location.search).get("run") || "";
let source;
function listen() {
  source = new EventSource(`/api/v1/stream?run=${encodeURIComponent(run)}`);
  for (const [name, take] of Object.entries(show)) source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  source.addEventListener("error", async () => {
    show.trouble({ text: "fl-queue web does not answer. Trying again." });
    if (source.readyState !== EventSource.CLOSED) return;
    // The server has refused: a browser does not reconnect by itself, and gives no reason.
    setTimeout(listen, 10000);
    const asked = new AbortController();
    const answer = await fetch(source.url, { signal: asked.signal }).catch(() => null);
    if (answer && answer.status === 401) location.assign("/login");
    else if (answer && !answer.ok) show.trouble({ text: `${(await answer.json()).message}. Trying again.` });
    asked.abort();
  });
}
listen();
