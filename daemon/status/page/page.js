// Owns the status page: asks the daemon every few seconds, and shows what it says. Nothing is written anywhere.
// Names, paths and errors come from strangers: they are set as text, never as HTML.

import { digits, make, plot } from "./plots.js";

const EVERY = 2000, PATIENCE = 8000; // ms
const FEW = 12; // steps of a run that are shown at first
const FEW_ERRORS = 3;
const STATES = ["running", "done", "pending", "failed", "quarantined", "incomplete", "suspect", "foreign", "unsupported", "removed", "vanished"];
const PHASES = { export: "exporting", read_back: "reading back", forward: "forward check", before_publish: "before_publish hook", sign: "signing" };
const ENDED = { export: "exported, checks go on", read_back: "read back, checks go on", forward: "forward check ends" };
const $ = (id) => document.getElementById(id);
const views = new Map(); // path of the run -> its view
let answered = null;

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// How things are written

function size(bytes) {
  if (!bytes) return "";
  const power = Math.min(4, Math.floor(Math.log10(bytes) / 3));
  return `${Number((bytes / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

function lasting(seconds) {
  if (seconds < 60) return "a moment";
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

/** A time as everywhere on this page: this browser's, with its zone. */
const moment = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "long" });

/** Text whose parts in backticks are code. */
function prose(kind, text) {
  const made = make("div", { class: kind });
  text.split("`").forEach((part, place, all) => {
    const isCode = place % 2 === 1 && place < all.length - 1;
    made.append(isCode ? make("code", { text: part }) : place % 2 === 1 ? `\`${part}` : part);
  });
  return made;
}

const between = (since, now) => Math.max(0, (Date.parse(now) - Date.parse(since)) / 1000);

const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

function chips(states) {
  return STATES.filter((state) => states[state]).map((state) => make("span", { class: `state ${state}`, text: `${states[state].toLocaleString("en")} ${state}` }));
}

/** Replaces what is in an element, unless it is the same: what is being read or selected stays. */
function put(element, ...children) {
  const before = element.innerHTML, made = make("div", {}, ...children);
  if (made.innerHTML === before) return;
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.run : undefined;
  element.replaceChildren(...made.childNodes);
  if (focused !== undefined) [...element.querySelectorAll("[data-run]")].find((one) => one.dataset.run === focused)?.focus();
}

// What runs, and what failed

function conversion(one, now) {
  const isOver = one.total > 0 && one.done >= one.total;
  const phase = (isOver && ENDED[one.phase]) || PHASES[one.phase] || (one.phase || "starting").replaceAll("_", " ");
  const counts = !one.total ? "" : one.phase === "forward" ? `${one.done} of ${one.total} layers` : `${size(one.done) || "0 B"} of ${size(one.total)}`;
  const bar = make("progress", { max: one.total || 1, "aria-label": `${one.run} step ${one.step}: ${phase}` });
  if (one.total) bar.setAttribute("value", one.done);
  const open = make("button", { type: "button", text: "show run", "data-run": one.run_path });
  const line = make(
    "div", { class: "line" },
    make("span", { class: "name", text: `${one.run} step-${one.step}` }),
    make("span", { class: "state running", text: phase }),
    make("span", { class: "quiet", text: counts }),
    make("span", { class: "quiet end", text: `attempt ${one.attempt}, ${Math.round(between(one.since, now))} s` }),
    open,
  );
  return make("div", { class: "card" }, line, bar);
}

/** Steps that fail for one cause; the newest of them is named. */
function failure(one) {
  const others = one.steps > 1 ? ` and ${counted(one.steps - 1, "more step")}${one.runs > 1 ? ` in ${counted(one.runs, "run")}` : ""}` : "";
  const line = make(
    "div", { class: "line" },
    make("span", { class: `state ${one.state}`, text: `${one.state}: ${one.error}` }),
    make("span", { class: "name", text: `${one.run} step-${one.step}${others}` }),
    make("span", { class: "quiet end", text: moment(one.at) }),
  );
  const card = make("div", { class: "card" }, line, prose("message", one.message));
  if (one.hint) card.append(prose("message hint", one.hint));
  return card;
}

const ROOTS = { left: "no longer in the configuration", empty: "watched, no run in it", starting: "not scanned yet", unwatched: "no daemon watches it" };

function root(one) {
  const facts = [`since ${moment(one.since)}`, one.message, one.free_bytes === null ? "" : `${size(one.free_bytes) || "0 B"} free`];
  return make(
    "li", { class: "line" },
    make("span", { class: "path", text: one.root }),
    make("span", { class: `state ${one.state}`, text: ROOTS[one.state] ?? one.state }),
    make("span", { class: "quiet", text: facts.filter(Boolean).join("; ") }),
  );
}

// One run

class Run {
  constructor(path) {
    this.path = path;
    this.seen = ""; // what is shown inside is of this time
    this.isWhole = false;
    this.title = make("span", { class: "line" });
    this.risk = make("div");
    this.plots = make("div", { class: "plots" });
    this.table = make("div", { class: "scroll" });
    this.element = make("details", {}, make("summary", {}, this.title), make("div", { class: "inside" }, this.risk, this.plots, this.table));
    this.element.addEventListener("toggle", () => this.look());
  }

  /** Runs with steps that failed stand first. */
  get isFailing() {
    return Boolean(this.run.states.failed || this.run.states.quarantined);
  }

  show(run, now) {
    this.run = run;
    const newest = run.steps[0];
    put(
      this.title,
      make("span", { class: "name", text: run.run }),
      make("span", { class: "chips" }, ...chips(run.states), ...(run.retention ? [make("span", { class: "state at-risk", text: "exports will be deleted" })] : [])),
      make("span", { class: "quiet", text: newest ? `newest step-${newest.step} ${newest.state}` : "" }),
      make("span", { class: "quiet end", text: `changed ${lasting(between(run.changed, now))} ago` }),
    );
    this.element.title = Object.keys(run.states).join() === "vanished" ? "" : run.path; // nothing is there of one that is gone
    put(this.risk, ...(run.retention ? [prose("message at-risk", run.retention.message), prose("message hint", run.retention.hint)] : []));
    this.look();
  }

  fits(words) {
    const text = `${this.run.run} ${this.run.path} ${Object.keys(this.run.states).filter((state) => this.run.states[state]).join(" ")}`.toLowerCase();
    return words.every((word) => text.includes(word));
  }

  /** Asks for what is inside, where it is open and has changed. */
  async look() {
    const state = `${this.run.changed} ${JSON.stringify(this.run.states)}`;
    if (!this.element.open || this.seen === state) return;
    this.seen = state;
    const about = encodeURIComponent(this.path);
    try {
      const [status, statistics] = await Promise.all([ask(`status.json?run=${about}`), ask(`statistics.json?run=${about}`)]);
      if (!status.runs.length) return;
      this.steps = status.runs[0].steps;
      this.leftOut = status.runs[0].left_out;
      this.plots.replaceChildren(...plots(this.steps, statistics));
      this.list();
    } catch {
      this.seen = ""; // the next round says what is wrong, and tries again
    }
  }

  list() {
    const shown = this.isWhole ? this.steps : this.steps.slice(0, FEW);
    const head = [["step", "number"], ["state"], ["attempts", "number"], ["took", "number"], ["size", "number"], ["published, or why not"]];
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...head.map(([text, kind]) => make("th", { text, class: kind ?? "", scope: "col" })))));
    table.append(make("tbody", {}, ...shown.map(row)));
    this.table.replaceChildren(table);
    if (shown.length < this.steps.length) {
      const more = make("button", { type: "button", text: `show ${this.steps.length - shown.length} older steps` });
      more.addEventListener("click", () => {
        this.isWhole = true;
        this.list();
      });
      this.table.append(more);
    } else if (this.leftOut) {
      this.table.append(make("p", { class: "quiet", text: `${this.leftOut.toLocaleString("en")} older steps are left out here; dcp2hfd status --all has them` }));
    }
  }
}

function row(step) {
  const took = step.duration_seconds ? `${step.duration_seconds.toFixed(1)} s` : "";
  const what = make("td");
  if (step.state === "done") what.append(make("span", { class: "path", text: step.output ?? "" }));
  else {
    what.append(prose("message", [step.error, step.reason].filter(Boolean).join(": ")));
    if (step.hint) what.append(prose("message hint", step.hint));
    if (step.retry_at) what.append(make("div", { class: "quiet", text: `again at ${moment(step.retry_at)}` }));
  }
  const number = (text) => make("td", { class: "number", text });
  return make(
    "tr", {}, number(step.step), make("td", {}, make("span", { class: `state ${step.state}`, text: step.state })),
    number(step.attempts || ""), number(took), number(size(step.bytes_written || step.model_bytes)), what,
  );
}

/** The plots of a run, from its steps (newest first) and its statistics. */
function plots(steps, said) {
  const known = said.steps.map((one) => ({ step: one.step, ...one.figures })).reverse();
  const over = known.map((one) => one.step);
  const parts = [...new Set(known.flatMap((one) => one.parts))];
  const layers = parts.filter((part) => /^\d+$/.test(part)).sort((a, b) => a - b);
  const others = parts.filter((part) => !/^\d+$/.test(part));
  const of = (column, part) => known.map((one) => one[column]?.[one.parts.indexOf(part)] ?? null);
  const series = (column, chosen, name) => chosen.map((part) => ({ name: name(part), part, values: of(column, part) }));
  const error = (column) => (at, line) => {
    const found = line.part === undefined ? null : of(column, line.part)[at];
    return found ? ` ± ${digits((100 * found) / line.values[at])} %` : "";
  };
  const against = (at) => (known[at].compared_with === null ? "" : ` against step ${known[at].compared_with.toLocaleString("en")}`);
  const found = [], empty = [];
  /** A plot, where there is a value to show; else its title alone is named. */
  const add = (facts) => {
    if (facts.series.some((line) => line.values.some((value) => value !== null))) found.push(plot(facts));
    else empty.push(facts.title);
  };
  if (known.length) {
    add({ title: "Weights by layer", note: "RMS of all weights of a layer", axis: "RMS", steps: over, series: series("rms", layers, (n) => `layer ${n}`), say: error("rms_error") });
    add({ title: "Updates by layer", note: "RMS of the change since the step compared with", axis: "RMS of change", isLog: true, steps: over, series: series("update", layers, (n) => `layer ${n}`), about: against, say: error("update_error") });
    add({ title: "Outside the layers", note: "RMS of weights", axis: "RMS", isLog: true, steps: over, series: series("rms", others, (n) => n), say: error("rms_error") });
    const added = known.map((one) => one.added_rows);
    const last = added.findLast((one) => one);
    if (last) {
      const rule = last.rule === "past_base_vocab" ? "ids from the base model's vocab_size on" : "the tokenizer's added tokens";
      const rows = { name: "added tokens", values: added.map((one) => one?.rms ?? null) };
      const all = { name: "all rows", values: of("rms", "embedding") };
      add({ title: "Embedding rows of added tokens", note: `RMS; ${last.rows.toLocaleString("en")} rows: ${rule}`, axis: "RMS", steps: over, series: [rows, all] });
    }
  } else {
    found.push(make("p", { class: "quiet", text: "No statistics yet: they are gathered while a step is converted (statistics = true)." }));
  }
  const broken = new Map(said.non_finite.map((one) => [one.step, one]));
  const checked = [...new Set([...over, ...broken.keys()])].sort((a, b) => a - b);
  if (checked.length && !broken.size) {
    found.push(make("p", { class: "quiet", text: `No NaN and no infinity in ${counted(checked.length, "converted step")}: all elements are counted` }));
  } else if (checked.length) {
    const share = (step) => {
      const one = broken.get(step);
      return one ? (one.nan + one.inf) / (one.elements || 1) : 0;
    };
    const counts = (at) => (broken.has(checked[at]) ? ` (${broken.get(checked[at]).nan} NaN, ${broken.get(checked[at]).inf} infinite)` : "");
    const note = `in ${broken.size} of ${checked.length} steps; all elements are counted`;
    found.push(plot({ title: "NaN and infinity", note, axis: "fraction", fromZero: true, steps: checked, series: [{ name: "fraction of elements", values: checked.map(share) }], say: counts }));
  }
  const timed = steps.filter((step) => step.duration_seconds).reverse();
  if (timed.length) {
    found.push(plot({ title: "Conversion time", note: "of the last attempt", axis: "seconds", fromZero: true, steps: timed.map((step) => step.step), series: [{ name: "seconds", values: timed.map((step) => step.duration_seconds) }] }));
  }
  if (empty.length) found.push(make("p", { class: "quiet", text: `Nothing to plot yet: ${empty.join(", ")}` }));
  if (said.left_out) found.push(make("p", { class: "quiet", text: `${said.left_out.toLocaleString("en")} older steps are left out of the plots` }));
  return found;
}

// All of it

function show(said) {
  const who = said.daemons.map((daemon) => `pid ${daemon.pid} since ${moment(daemon.since)}`).join(", ");
  const away = said.roots.filter((root) => root.reachable === false).map((root) => root.root);
  $("daemon").textContent = `${who}; ${said.running.length} of ${said.workers} workers busy, ${counted(said.roots.length, "root")}`;
  put($("totals"), ...chips(said.states));
  trouble([
    ...(away.length ? [`unreachable: ${away.join(", ")}`] : []),
    ...said.daemons.filter((daemon) => daemon.config_error).map((daemon) => `the last configuration was refused: ${daemon.config_error}`),
    ...(said.state_dir_fails ? ["state_dir fails: what is remembered is in memory only"] : []),
  ]);
  put($("now"), ...(said.running.length ? said.running.map((one) => conversion(one, said.now)) : [make("p", { class: "quiet", text: "nothing" })]));
  $("errors-section").hidden = !said.errors.length;
  put($("errors"), ...said.errors.slice(0, FEW_ERRORS).map(failure));
  $("more-errors").hidden = said.errors.length <= FEW_ERRORS;
  put($("older-errors"), ...said.errors.slice(FEW_ERRORS).map(failure));
  $("roots-section").hidden = !said.roots.length;
  put($("roots"), ...said.roots.map(root));
  const there = new Set(said.runs.map((run) => run.path));
  for (const [path, view] of views) {
    if (!there.has(path)) {
      view.element.remove();
      views.delete(path);
    }
  }
  for (const run of said.runs) {
    const isNew = !views.has(run.path);
    if (isNew) views.set(run.path, new Run(run.path));
    const view = views.get(run.path), wasFailing = !isNew && view.isFailing;
    view.show(run, said.now);
    if (isNew || view.isFailing !== wasFailing) place(view);
    if (isNew && said.runs.length === 1) view.element.open = true;
  }
  filter(said.runs_left_out);
}

/** Puts a run among those there: failing ones first, then by name. */
function place(view) {
  const name = (one) => `${one.isFailing ? 0 : 1} ${one.run.run}\0${one.path}`;
  const after = [...views.values()].filter((one) => one !== view && one.element.isConnected && name(one).localeCompare(name(view), "en", { numeric: true }) > 0);
  after.sort((a, b) => (a.element.compareDocumentPosition(b.element) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1));
  $("runs").insertBefore(view.element, after[0]?.element ?? null);
}

let leftOut = 0;
function filter(more = leftOut) {
  leftOut = more;
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const view of views.values()) {
    view.element.hidden = !view.fits(words);
    count += !view.element.hidden;
  }
  const rest = leftOut ? `; ${leftOut.toLocaleString("en")} that changed earlier are left out` : "";
  $("count").textContent = views.size ? `${count} of ${views.size}${rest}` : "no run is known yet";
}

function trouble(said) {
  $("trouble").textContent = said.join("; ");
  $("trouble").hidden = !said.length;
}

async function round() {
  try {
    show(await ask("status.json"));
    answered = new Date();
    document.title = "dcp2hfd";
    $("asked").textContent = `asked every ${EVERY / 1000} s, last at ${answered.toLocaleTimeString()}`;
  } catch (error) {
    const since = answered ? `since ${answered.toLocaleTimeString()}: what stands here is of then` : "yet";
    trouble([`The daemon has not answered ${since} (${error.name === "TimeoutError" ? "no answer" : error.message})`]);
    document.title = "dcp2hfd: no answer";
  }
  setTimeout(round, EVERY);
}

$("filter").addEventListener("input", () => filter());
$("now").addEventListener("click", (event) => {
  const view = views.get(event.target.dataset?.run);
  if (!view) return;
  view.element.hidden = false;
  view.element.open = true;
  view.element.scrollIntoView({ block: "start" });
  view.element.querySelector("summary").focus();
});
round();
