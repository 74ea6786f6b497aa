"use strict";
// The console. It reads the admin port's JSON and changes nothing. Whatever it shows becomes text, never markup.

(() => {
  const POLL_MS = 2000;
  const KEPT = 2000; // decisions in memory
  const SHOWN = 200; // rows in the page
  const $ = (id) => document.getElementById(id);
  const main = $("main");

  // Elements

  function fill(node, props, children) {
    for (const [key, value] of Object.entries(props || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "value") node.value = value;
      else node.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) node.append(child);
    }
    return node;
  }
  const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
  const svg = (tag, props, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
  const panel = (title, note, ...children) =>
    el("section", { class: "panel" }, el("header", {}, el("h2", {}, title), note ? el("span", { class: "note" }, note) : null), children);
  const wide = (columns, node) => (node.classList.add(`w${columns}`), node);
  const empty = (title, ...more) => el("div", { class: "empty" }, el("strong", {}, title), more.map((each) => (typeof each === "string" ? el("span", {}, each) : each)));
  const sized = (mark, text) => el("span", { class: "mark " + mark, role: "img", "aria-label": mark }, text);
  const put = (node, ...children) => node.replaceChildren(...children.flat(Infinity).filter(Boolean));

  // Words and numbers

  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const at = (seconds) => clock.format(new Date(seconds * 1000));
  function number(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1e9) return (value / 1e9).toPrecision(3) + " G";
    if (size >= 1e6) return (value / 1e6).toPrecision(3) + " M";
    if (size >= 1e4) return (value / 1e3).toPrecision(3) + " k";
    if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
    return String(Number(value.toPrecision(3)));
  }
  const money = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(2));
  const share = (part, whole) => (whole ? (100 * part / whole).toFixed(part && part / whole < 0.1 ? 1 : 0) + " %" : "–");
  function time(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 0.001) return number(seconds * 1e6) + " µs";
    if (seconds < 1) return number(seconds * 1e3) + " ms";
    return number(seconds) + " s";
  }
  const named = (decision) => decision || "default";
  const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  const sum = (rows, of) => rows.reduce((total, row) => total + of(row), 0);

  // The admin port

  const TOKEN = "pointsman-token";
  class Answer extends Error {
    constructor(status, text) { super(text || `status ${status}`); this.status = status; }
  }
  async function ask(path, options = {}) {
    const headers = new Headers(options.headers);
    const token = sessionStorage.getItem(TOKEN);
    if (token) headers.set("authorization", `Bearer ${token}`);
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Answer(0, "the router does not answer");
    }
    if (answer.status === 401) { signIn(Boolean(token)); throw new Answer(401, "a token is needed"); }
    return answer;
  }
  async function get(path) {
    const answer = await ask(path);
    if (!answer.ok) throw new Answer(answer.status, (await answer.text()).trim());
    return answer.json();
  }
  async function post(path, body, signal) {
    const answer = await ask(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal });
    const text = await answer.text();
    let found;
    try { found = JSON.parse(text); } catch { found = { error: text.trim() }; }
    if (!answer.ok) throw Object.assign(new Answer(answer.status, found.error), { found });
    return found;
  }

  // What is known

  const known = { state: null, policy: null, outcomes: null, points: [], decisions: [], missed: 0, problem: null, text: null, findings: null };
  let view = null;
  let signing = false;

  async function poll() {
    if (signing || document.hidden) return;
    try {
      const last = known.points.length ? known.points[known.points.length - 1].time : 0;
      const [state, outcomes] = await Promise.all([get("/console/state"), get(`/outcomes?after=${last}`)]);
      known.state = state;
      known.outcomes = outcomes;
      known.points = known.points.concat(outcomes.points).slice(-180);
      if (!known.policy || known.policy.policy !== state.policy) {
        known.policy = await get("/policy?form=json");
        known.text = await (await ask("/policy")).text();
        known.findings = null;
        if (view && view.reloaded) view.reloaded();
      }
      known.problem = null;
    } catch (error) {
      if (error.status === 401) return;
      known.problem = error.message;
    }
    health();
    if (view && view.update) view.update();
  }
  function health() {
    const node = $("health");
    const state = known.state;
    const text = known.problem ? `Not connected: ${known.problem}` : !state ? "Connecting…" : !state.ready ? "Not ready" : (known.outcomes.now.workers || 1) > 1 ? `Ready · ${known.outcomes.now.workers} workers` : "Ready";
    node.className = "health " + (known.problem ? "bad" : state && state.ready ? "good" : "");
    if (node.lastElementChild.textContent !== text) node.lastElementChild.textContent = text;
    $("hash").textContent = state ? state.policy.replace("sha256:", "").slice(0, 10) : "";
    $("hash").title = state ? `The policy in force: ${state.policy}` : "";
  }

  // Decisions as they are made

  let following = null;
  async function follow() {
    let pause = 500;
    for (;;) {
      if (signing) return;
      following = new AbortController();
      try {
        const answer = await ask(`/debug/decisions?follow&limit=${known.decisions.length ? 0 : 200}`, { signal: following.signal });
        if (!answer.ok) throw new Answer(answer.status, await answer.text());
        for await (const events of streamed(answer)) { pause = 500; take(events); }
      } catch (error) {
        if (error.status === 401) return;
      }
      await new Promise((go) => setTimeout(go, pause));
      pause = Math.min(2 * pause, 10000);
    }
  }
  // The server-sent events of an answer, as many at a time as have come: [name, data].
  async function* streamed(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const lines = eventLines();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield lines(value);
    }
  }
  function eventLines() {
    let rest = "";
    return (text) => {
      const events = (rest + text).split(/\r?\n\r?\n/);
      rest = events.pop();
      const field = (event, name) => event.split(/\r?\n/).filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).replace(/^ /, "")).join("\n");
      return events.map((event) => [field(event, "event"), field(event, "data")]).filter(([, data]) => data);
    };
  }
  function take(events) {
    const fresh = [];
    for (const [name, data] of events) {
      if (name === "missed") known.missed += Number(data);
      else fresh.push(JSON.parse(data));
    }
    if (!fresh.length) return;
    known.decisions.push(...fresh);
    if (known.decisions.length > KEPT) known.decisions.splice(0, known.decisions.length - KEPT);
    if (view && view.decided) view.decided(fresh);
  }

  // Charts

  function order(points) {
    const totals = new Map();
    for (const point of points) for (const row of point.decisions) totals.set(named(row.decision), (totals.get(named(row.decision)) || 0) + row.count);
    return [...totals].sort((a, b) => b[1] - a[1]);
  }
  // A name keeps its colour: that of its place in the policy.
  function colour(name) {
    if (name === "default") return "frest";
    const index = known.policy ? known.policy.decisions.findIndex((each) => each.name === name) : -1;
    return index < 0 ? "frest" : `f${index % 8}`;
  }
  const refuses = (name) => Boolean(known.policy && known.policy.decisions.some((each) => each.name === name && each.action === "respond"));
  function swatch(name) {
    return svg("svg", { width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 3, class: colour(name) }), refuses(name) ? svg("path", { d: "M-1 13L13 -1", class: "hatch" }) : null);
  }
  function bins(points, seconds) {
    if (!points.length) return [];
    const end = points[points.length - 1].time;
    const begin = end - seconds;
    const count = Math.max(1, Math.min(60, Math.round(seconds / 5)));
    const found = Array.from({ length: count }, (_, index) => ({ time: begin + (index + 1) * seconds / count, seconds: 0, of: new Map(), p50: null, p99: null, total: 0 }));
    for (const point of points) {
      const index = Math.min(count - 1, Math.floor((point.time - begin - 1e-6) / seconds * count));
      if (index < 0) continue;
      const bin = found[index];
      bin.seconds += point.seconds;
      for (const row of point.decisions) {
        const name = named(row.decision);
        bin.of.set(name, (bin.of.get(name) || 0) + row.count);
        bin.total += row.count;
      }
      const times = point.decision_seconds;
      if (times.p50 !== null) { bin.p50 = Math.max(bin.p50 || 0, times.p50); bin.p99 = Math.max(bin.p99 || 0, times.p99); }
    }
    return found;
  }
  function nice(most) {
    if (!(most > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(most));
    return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= most);
  }
  // A plot over time that is read with the pointer or with the arrow keys.
  function plot(height, label, draw, tell) {
    const chart = svg("svg", { class: height < 150 ? "chart low" : "chart", role: "img", tabindex: 0, "aria-label": label });
    const tip = el("div", { class: "tip hidden", role: "status" });
    const box = el("div", { class: "plot" }, chart, tip);
    let data = [];
    let chosen = null;
    const left = 44, bottom = 20, top = 8;
    function show(index) {
      chosen = index === null || !data.length ? null : Math.max(0, Math.min(data.length - 1, index));
      paint();
    }
    function paint() {
      const width = Math.max(240, chart.clientWidth || 600);
      const inner = width - left;
      chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const x = (index) => left + inner * index / data.length;
      const drawn = draw(data, { x, width, left, top, bottom: height - bottom, step: inner / Math.max(1, data.length) });
      const parts = [];
      for (const part of [0, 0.5, 1]) {
        const y = height - bottom - part * (height - bottom - top);
        parts.push(svg("line", { class: "rule", x1: left, x2: width, y1: y, y2: y }), svg("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, drawn.scale(part)));
      }
      if (data.length) {
        const steps = width < 460 ? 2 : 4;
        for (let part = 0; part <= steps; part += 1) {
          const index = Math.min(data.length - 1, Math.round(part * (data.length - 1) / steps));
          parts.push(svg("text", { x: x(index) + inner / data.length / 2, y: height - 4, "text-anchor": part === 0 ? "start" : part === steps ? "end" : "middle" }, at(data[index].time)));
        }
      }
      parts.push(...drawn.marks);
      if (chosen !== null) parts.push(svg("line", { class: "at", x1: x(chosen + 0.5), x2: x(chosen + 0.5), y1: top, y2: height - bottom }));
      put(chart, parts);
      tip.classList.toggle("hidden", chosen === null);
      if (chosen !== null) {
        put(tip, tell(data[chosen]).map((line) => el("div", {}, line)));
        tip.style.left = `${Math.min(x(chosen) + 12, width - tip.offsetWidth - 4)}px`;
      }
    }
    const index = (event) => Math.floor((event.clientX - chart.getBoundingClientRect().left - left) / (chart.clientWidth - left) * data.length);
    chart.addEventListener("pointermove", (event) => show(index(event)));
    chart.addEventListener("pointerleave", () => show(null));
    chart.addEventListener("blur", () => show(null));
    chart.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") show((chosen === null ? data.length : chosen) - 1);
      else if (event.key === "ArrowRight") show((chosen === null ? -1 : chosen) + 1);
      else if (event.key === "Escape") show(null);
      else return;
      event.preventDefault();
    });
    new ResizeObserver(() => paint()).observe(box);
    return { node: box, set: (found) => { data = found; paint(); } };
  }
  function stacked() {
    return plot(190, "Decisions per second over time; the legend below has the sums", (data, place) => {
      const most = nice(Math.max(0, ...data.map((bin) => (bin.seconds ? bin.total / bin.seconds : 0))));
      const marks = [];
      const names = order(data.map((bin) => ({ decisions: [...bin.of].map(([decision, count]) => ({ decision, count })) }))).map(([name]) => name);
      data.forEach((bin, index) => {
        let y = place.bottom;
        for (const name of names) {
          const count = bin.of.get(name);
          if (!count || !bin.seconds) continue;
          const high = (place.bottom - place.top) * (count / bin.seconds) / most;
          y -= high;
          const box = { x: place.x(index) + 0.75, y, width: Math.max(1, place.step - 1.5), height: high };
          marks.push(svg("rect", { ...box, class: colour(name) }));
          if (refuses(name) && high > 3) {
            let path = "";
            for (let line = y + 4; line < y + high; line += 6) path += `M${box.x} ${line}h${box.width}`;
            marks.push(svg("path", { d: path, class: "hatch" }));
          }
        }
      });
      return { scale: (part) => number(part * most), marks };
    }, (bin) => [
      `${at(bin.time)} · ${number(bin.seconds ? bin.total / bin.seconds : 0)}/s`,
      ...[...bin.of].sort((a, b) => b[1] - a[1]).slice(0, 8).map(([name, count]) => `${name}: ${number(count)}`),
    ]);
  }
  function lines() {
    return plot(120, "Time of a decision: the median and the 99th percentile", (data, place) => {
      const most = nice(Math.max(0, ...data.map((bin) => bin.p99 || 0)));
      const line = (key, look) => {
        let path = "";
        let pen = "M";
        data.forEach((bin, index) => {
          if (bin[key] === null) { pen = "M"; return; }
          path += `${pen}${place.x(index + 0.5)} ${place.bottom - (place.bottom - place.top) * bin[key] / most}`;
          pen = "L";
        });
        return svg("path", { class: `line ${look}`, d: path });
      };
      return { scale: (part) => (most === 1 ? (part ? "" : "0") : time(part * most)), marks: [line("p50", "s0"), line("p99", "s1")] };
    }, (bin) => [at(bin.time), `median ${time(bin.p50)}`, `p99 ${time(bin.p99)}`]);
  }
  const key = (text, look) => el("span", { class: "key" }, svg("svg", { width: 22, height: 4, viewBox: "0 0 22 4", "aria-hidden": "true" }, svg("line", { class: look, x1: 0, x2: 22, y1: 2, y2: 2 })), text);
  function bar(name, value, part, tone) {
    return el("div", { class: "bar " + (tone || "") }, el("span", { class: "name", title: name }, name), el("span", { class: "quiet" }, value),
      svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "back", width: 100, height: 6 }), svg("rect", { class: "fill", width: Math.max(0, Math.min(100, 100 * part)), height: 6 })));
  }
  function table(heads, rows, caption) {
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, el("table", {}, el("thead", {}, el("tr", {}, heads.map(([text, look]) => el("th", { scope: "col", class: look }, text)))), el("tbody", {}, rows)));
  }
  const row = (heads, cells) => el("tr", {}, cells.map((cell, index) => el("td", { class: heads[index][1] }, cell)));

  // How an answer came about: who wrote which step, or which calls a panel made

  const ACTIONS = {
    keep: "draft, kept", redo: "written anew", loop: "written anew: the draft went in circles", unjudged: "written anew: nobody could judge the draft",
    large: "asked at once", handover: "took over", takeover: "took over: the other model failed", rest: "not judged", cut: "broken off here",
  };
  const did = (step) => ACTIONS[step.action] || step.action;
  const REDONE = ["redo", "loop", "unjudged"];
  const SETTLED = { redos: "no redo was left", steps: "enough steps were judged", seconds: "its time for judging was over", money: "its money was spent", upstream: "a model failed", strategy: "the strategy was done" };
  // A model keeps its colour in all answers: that of its place in the policy.
  function hand(model) {
    const index = known.policy ? known.policy.models.findIndex((each) => each.name === model) : 0;
    return `hand${Math.max(0, index) % 4}`;
  }
  const chip = (model) => el("span", { class: `chip ${hand(model)}` }, model);
  const bySteps = (steps) => `${plural(steps.length, "step")}: ${steps.map((step) => `${step.model} ${did(step)}`).join("; ")}`;
  const strip = (steps, look) => el("span", { class: `strip ${look || ""}`, role: "img", "aria-label": bySteps(steps) }, steps.map((step) => {
    const part = el("span", { class: hand(step.model), title: `${step.index + 1}: ${step.model}, ${did(step)}` }, look ? null : REDONE.includes(step.action) ? "↻" : step.action === "handover" || step.action === "takeover" ? "→" : null);
    part.style.flexGrow = Math.max(1, step.tokens);
    return part;
  }));
  function drawCourse(course) {
    if (course.steps) return drawSteps(course);
    return course.calls ? drawCalls(course) : null;
  }
  function drawSteps(course) {
    const heads = [["#", "n"], ["Written by"], ["How"], ["Tokens", "n"], ["Score", "n"]];
    const shares = new Map();
    for (const step of course.steps) shares.set(step.model, (shares.get(step.model) || 0) + step.tokens);
    const all = sum(course.steps, (step) => step.tokens);
    return el("div", { class: "course" }, strip(course.steps),
      el("p", { class: "small quiet" }, [...shares].map(([model, tokens]) => [chip(model), ` ${share(tokens, all)} · `]), `${plural(course.redos, "redo")}, by ${course.strategy}`, course.settled ? `; then not judged: ${SETTLED[course.settled] || course.settled}` : ""),
      table(heads, course.steps.map((step) => row(heads, [step.index + 1, chip(step.model), [REDONE.includes(step.action) ? "↻ " : "", did(step)], number(step.tokens), step.score === undefined ? "" : step.score.toFixed(2)])), "Steps"),
      course.count > course.steps.length ? el("p", { class: "small quiet" }, `and ${plural(course.count - course.steps.length, "step")} more`) : null);
  }
  function drawCalls(course) {
    const until = Math.max(0.001, ...course.calls.map((call) => (call.began || 0) + (call.seconds || 0)));
    return el("div", { class: "course" }, el("p", { class: "small quiet" }, `A panel (${course.panel}): ${plural(course.calls.length, "call")} in ${time(until)}.`),
      el("ul", { class: "calls" }, course.calls.map((call) => el("li", {},
        el("span", { class: "row" }, chip(call.model), el("span", {}, call.why), call.released ? el("span", { class: "tag good" }, "released") : null, call.error ? el("span", { class: "tag bad" }, call.error) : null, el("span", { class: "said right" }, `${number(call.completion_tokens)} tokens · ${money(call.cost)} · ${call.seconds === undefined ? "not asked" : time(call.seconds)}`)),
        svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "back", width: 100, height: 6 }),
          call.seconds === undefined ? null : svg("rect", { class: hand(call.model), x: 100 * call.began / until, width: Math.max(0.8, 100 * call.seconds / until), height: 6 }))))));
  }

  // Overview

  function overview() {
    const spans = [["1 min", 60], ["5 min", 300], ["15 min", 900]];
    let span = Number(sessionStorage.getItem("span")) || 300;
    const buttons = spans.map(([text, seconds]) => el("button", { type: "button", "aria-pressed": String(span === seconds), onclick: () => { span = seconds; sessionStorage.setItem("span", span); buttons.forEach((each, index) => each.setAttribute("aria-pressed", String(spans[index][1] === span))); update(); } }, text));
    const trouble = el("div", {});
    const figures = {};
    const tile = (key, title) => {
      const figure = el("dd", { class: "figure" }, el("span", { class: "loading" }, "000"));
      const more = el("dd", { class: "more" }, "\u00a0");
      figures[key] = [figure, more];
      return el("dl", { class: "panel tile" }, el("dt", {}, title), figure, more);
    };
    const tiles = el("div", { class: "tiles" }, tile("rate", "Requests"), tile("refused", "Refused"), tile("unknown", "Unknown readings"), tile("time", "A decision takes"), tile("money", "Spent"), tile("saved", "Saved"));
    const chart = stacked();
    const legend = el("ul", { class: "legend" });
    const times = lines();
    const refusals = el("div", {}), unknowns = el("div", {}), models = el("div", {}), budgets = el("div", {}), answers = el("div", {});
    const node = el("div", {},
      el("div", { class: "head" }, el("h1", {}, "Overview"), el("div", { class: "actions" }, el("div", { class: "segments", role: "group", "aria-label": "Time span" }, buttons))),
      trouble, tiles,
      el("div", { class: "grid" },
        wide(8, panel("Decisions", "per second", chart.node, legend)),
        wide(4, panel("Time of a decision", [key("median", "s0"), key("p99", "s1")], times.node, el("h3", {}, "What the answers came to"), answers)),
        wide(12, panel("Models", "those that really answered", models)),
        wide(4, panel("Refused, and why", null, refusals)),
        wide(4, panel("Unknown readings", "by signal and reason", unknowns)),
        wide(4, panel("Budgets", "the least that anybody has left", budgets))));
    function figure(key, value, unit, more) {
      put(figures[key][0], value, unit ? el("span", { class: "unit" }, unit) : null);
      put(figures[key][1], more || "\u00a0");
    }
    function added(points, key, by) {
      const found = new Map();
      for (const point of points) for (const each of point[key]) { const name = by(each); found.set(name, (found.get(name) || 0) + each.count); }
      return [...found].sort((a, b) => b[1] - a[1]);
    }
    function list(node, rows, total, none, tone) {
      put(node, rows.length ? rows.slice(0, 8).map(([name, count]) => bar(name, number(count), count / total, tone)) : empty(none));
    }
    function update() {
      put(trouble, known.problem ? el("p", { class: "error", role: "alert" }, `The router does not answer: ${known.problem}. The figures are those of ${known.outcomes ? at(known.outcomes.time) : "never"}.`) : null);
      if (!known.outcomes) return;
      const end = known.points.length ? known.points[known.points.length - 1].time : known.outcomes.time;
      const points = known.points.filter((point) => point.time > end - span);
      const seconds = sum(points, (point) => point.seconds) || 1;
      const requests = sum(points, (point) => point.requests);
      const guards = added(points, "decisions", (each) => (each.action === "respond" ? named(each.decision) : "")).filter(([name]) => name);
      const broken = added(points, "refused", (each) => each.reason);
      const refused = sum([...guards, ...broken], (each) => each[1]);
      const unknown = added(points, "unknown", (each) => `${each.signal} · ${each.reason}`);
      const latest = points.filter((point) => point.decision_seconds.p50 !== null).pop();
      const total = known.outcomes.total;
      const paid = sum(points, (point) => sum(point.models, (model) => model.money));
      const saved = sum(points, (point) => point.saved);
      const metered = known.policy && known.policy.metered;
      const newest = points.slice(-2);
      figure("rate", number(sum(newest, (point) => point.requests) / (sum(newest, (point) => point.seconds) || 1)), "/s", `${number(requests / seconds)}/s on average, ${number(total.requests)} since the start`);
      figure("refused", share(refused, requests + sum(broken, (each) => each[1])), "", `${number(refused)} of ${number(requests + sum(broken, (each) => each[1]))}`);
      figure("unknown", number(sum(unknown, (each) => each[1])), "", requests ? `${number(100 * sum(unknown, (each) => each[1]) / requests)} per 100 requests` : "\u00a0");
      figure("time", latest ? time(latest.decision_seconds.p50) : "–", "", latest ? `p99 ${time(latest.decision_seconds.p99)}` : "no request yet");
      figure("money", metered ? money(paid) : "–", "", metered ? `${money(sum(total.models, (model) => model.money))} since the start` : "settings.meter is off");
      const reference = known.policy && known.policy.reference;
      figure("saved", metered && reference ? money(saved) : "–", "", !metered ? "settings.meter is off" : reference ? `${money(total.saved)} since the start, against ${reference}` : "no settings.reference");
      const found = bins(points, span);
      chart.set(found);
      times.set(found);
      const shares = order(points);
      put(legend, shares.length ? shares.slice(0, 12).map(([name, count]) => el("li", {}, swatch(name), el("span", { class: "name", title: name }, name), el("span", { class: "value" }, `${number(count)} · ${share(count, requests)}`))) : el("li", { class: "quiet" }, "No request in this time."));
      list(refusals, [...guards, ...broken], refused, "Nothing was refused", "bad");
      list(unknowns, unknown, sum(unknown, (each) => each[1]), "Every signal could say what it was asked", "warn");
      const left = Object.entries(known.outcomes.now.budgets);
      put(budgets, left.length ? left.map(([name, part]) => bar(name, share(part, 1), part, part < 0.1 ? "bad" : part < 0.3 ? "warn" : "")) : empty("The policy has no budget"));
      const acted = added(points, "answers", (each) => `${each.decision}: ${each.action}`);
      const kept = added(points, "cache", (each) => each.result);
      put(answers, acted.length || kept.length ? [...acted, ...kept.map(([name, count]) => [`cache: ${name}`, count])].slice(0, 5).map(([name, count]) => el("div", { class: "bar" }, el("span", { class: "name" }, name), el("span", { class: "quiet" }, number(count)))) : el("p", { class: "quiet small" }, "No decision acted on an answer, and none was kept."));
      const heads = [["Model"], ["Requests", "n"], ["Share", "n optional"], ["Errors", "n"], ["First byte, median", "n"], ["p90", "n optional"], ["Whole answer, median", "n optional"], ["Tokens in", "n"], ["Tokens out", "n"], ["Money", "n"]];
      const rows = total.models.map((model) => row(heads, [model.model, number(model.requests), share(model.requests, total.requests), model.answers ? number(model.errors) : "–", time((model.first_byte || {}).p50), time((model.first_byte || {}).p90), time((model.seconds || {}).p50), model.answers ? number(model.tokens.input || 0) : "–", model.answers ? number(model.tokens.output || 0) : "–", model.answers ? money(model.money) : "–"]));
      put(models, rows.length ? [table(heads, rows, "Models"), el("p", { class: "quiet small" }, metered ? "Since the router began." : "Since the router began. Tokens, money and times are counted with settings: {meter: on}.")] : empty("No request yet", "Send one through Envoy, and it is here within seconds."));
    }
    return { title: "Overview", node, update };
  }

  // Live

  function live() {
    let paused = false;
    let waiting = 0;
    let chosen = null;
    let dirty = true;
    const filter = el("input", { class: "filter", type: "search", placeholder: "Filter: decision, model, tenant", "aria-label": "Filter the decisions", oninput: () => { dirty = true; draw(true); } });
    const pause = el("button", { type: "button", "aria-pressed": "false", onclick: () => turn() }, "Pause");
    const note = el("span", { class: "quiet small", role: "status" });
    const body = el("tbody", {});
    const heads = [["Time"], ["Decision"], ["Model"], ["Action", "optional"], ["Tenant", "optional"], ["Status", "n"], ["Tokens", "n optional"], ["Money", "n optional"], ["Decided in", "n"]];
    const none = el("div", {});
    const list = el("div", { class: "rows" }, el("table", { "aria-label": "Decisions, the newest first" }, el("thead", {}, el("tr", {}, heads.map(([text, look]) => el("th", { scope: "col", class: look }, text)))), body), none);
    const side = el("aside", { class: "panel trace hidden", "aria-label": "The decision's trace" });
    const box = el("div", { class: "live" }, el("section", { class: "panel stream" }, list), side);
    const node = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Live"), note, el("div", { class: "actions" }, filter, pause)), box);

    function turn() {
      paused = !paused;
      waiting = 0;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Go on" : "Pause";
      pause.classList.toggle("primary", paused);
      draw(true);
    }
    const wanted = (decision) => {
      const words = filter.value.trim().toLowerCase();
      return !words || [named(decision.decision), decision.model, decision.tenant, decision.action, decision.request_id].some((each) => each && each.toLowerCase().includes(words));
    };
    function line(decision) {
      const answer = decision.answer || {};
      const status = decision.status || answer.status;
      const tokens = answer.input_tokens === undefined ? "–" : `${number(answer.input_tokens)} → ${number(answer.output_tokens || 0)}`;
      const name = el("span", {}, named(decision.decision));
      const cells = [at(decision.time), [swatch(named(decision.decision)), " ", name, decision.fallback ? [" ", el("span", { class: "tag bad" }, decision.fallback)] : null, decision.observed ? [" ", el("span", { class: "tag warn" }, "observed")] : null], decision.model || "–", [decision.action, answer.course && answer.course.steps ? [" ", strip(answer.course.steps, "mini")] : null], decision.tenant || "–",
        status ? el("span", { class: "tag " + (status < 400 ? "good" : "bad") }, status) : "–", tokens, money(answer.cost), time(decision.us / 1e6)];
      const made = row(heads, cells);
      made.dataset.key = decision.key;
      made.tabIndex = -1;
      if (chosen && chosen.key === decision.key) made.setAttribute("aria-selected", "true");
      return made;
    }
    let drawn = null;
    let soon = false;
    function draw(now) {
      if (!now) {
        if (soon) return;
        soon = true;
        setTimeout(() => { soon = false; draw(true); }, 200);
        return;
      }
      if (paused && !dirty && drawn !== null) {
        note.textContent = waiting ? `Paused: ${number(waiting)} more since` : "Paused";
        return;
      }
      dirty = false;
      const found = [];
      for (let index = known.decisions.length - 1; index >= 0 && found.length < SHOWN; index -= 1) if (wanted(known.decisions[index])) found.push(known.decisions[index]);
      const there = new Map([...body.children].map((each) => [each.dataset.key, each]));
      const rows = found.map((decision) => there.get(decision.key) || line(decision));
      const keep = new Set(rows);
      for (const old of [...body.children]) if (!keep.has(old)) old.remove();
      let next = body.firstElementChild;
      const above = list.scrollTop > 4 ? list.scrollHeight : 0;
      for (const each of rows) { if (each === next) next = next.nextElementSibling; else body.insertBefore(each, next); }
      if (above) list.scrollTop += list.scrollHeight - above; // who reads further down stays there
      if (!body.querySelector('tr[tabindex="0"]') && rows.length) rows[0].tabIndex = 0;
      drawn = found.length;
      note.textContent = paused ? "Paused" : known.missed ? `${number(known.missed)} came too quickly to be shown` : "";
      put(none, rows.length ? null : known.decisions.length ? empty("No decision matches the filter", el("button", { type: "button", onclick: () => { filter.value = ""; draw(true); } }, "Show all")) : empty("No decision yet", "As soon as a request comes through Envoy, it is here."));
    }
    function step(from, by) {
      const rows = [...body.children];
      const next = rows[Math.max(0, Math.min(rows.length - 1, rows.indexOf(from) + by))];
      if (!next) return;
      from.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      next.scrollIntoView({ block: "nearest" });
      if (chosen) open(next.dataset.key);
    }
    body.addEventListener("click", (event) => { const found = event.target.closest("tr"); if (found) open(found.dataset.key); });
    body.addEventListener("keydown", (event) => {
      const from = event.target.closest("tr");
      if (event.key === "ArrowDown") step(from, 1);
      else if (event.key === "ArrowUp") step(from, -1);
      else if (event.key === "Enter" || event.key === " ") open(from.dataset.key);
      else return;
      event.preventDefault();
    });
    function close() {
      chosen = null;
      side.classList.add("hidden");
      box.classList.remove("open");
      for (const each of body.querySelectorAll('[aria-selected="true"]')) { each.removeAttribute("aria-selected"); each.focus(); }
    }
    async function open(key) {
      const decision = known.decisions.find((each) => each.key === key);
      if (!decision) return;
      chosen = decision;
      for (const each of body.children) each.dataset.key === key ? each.setAttribute("aria-selected", "true") : each.removeAttribute("aria-selected");
      side.classList.remove("hidden");
      box.classList.add("open");
      const answer = decision.answer || {};
      const fact = (name, value) => (value === undefined || value === null || value === "" ? null : [el("dt", {}, name), el("dd", {}, value)]);
      const rules = el("div", {}, el("p", { class: "loading" }, "…"));
      put(side,
        el("header", {}, el("h2", {}, named(decision.decision)), decision.kept ? el("span", { class: "tag accent" }, "kept by the session") : null, el("button", { class: "icon note", type: "button", "aria-label": "Close the trace", onclick: close }, "✕")),
        el("dl", { class: "facts" },
          fact("When", day.format(new Date(decision.time * 1000))), fact("Model", decision.chosen ? `${decision.model}, in the place of ${decision.chosen}` : decision.model), fact("Action", decision.action),
          fact("Refused with", decision.status), fact("Because", decision.fallback), fact("Tenant", decision.tenant), fact("Cache", decision.cache), fact("Request", decision.request_id ? el("code", {}, decision.request_id) : null),
          fact("Decided in", time(decision.us / 1e6)), fact("Choice", decision.choice ? `${decision.choice.model} by ${decision.choice.by}: ${decision.choice.why}` : null),
          fact("Lacking", decision.lacking ? Object.entries(decision.lacking).map(([model, lacks]) => `${model}: ${lacks.join(", ")}`).join("; ") : null), fact("Only observed", decision.observed ? decision.observed.join(", ") : null)),
        el("h3", {}, "Rules"), rules,
        el("h3", {}, "Answer"), Object.keys(answer).length ? el("dl", { class: "facts" },
          fact("Status", answer.status), fact("First byte", answer.first_byte === undefined ? null : time(answer.first_byte)), fact("To its end", answer.seconds === undefined ? null : time(answer.seconds)),
          fact("Tokens", answer.input_tokens === undefined ? null : `${answer.input_tokens} in, ${answer.output_tokens || 0} out${answer.cached_tokens ? `, ${answer.cached_tokens} cached` : ""}${answer.reasoning_tokens ? `, ${answer.reasoning_tokens} to reason` : ""}`),
          fact("Money", answer.cost === undefined ? null : money(answer.cost)), fact("Reference", answer.reference_cost === undefined ? null : money(answer.reference_cost)),
          fact("Watched", answer.acted ? answer.acted.map((each) => `${each.decision}: ${each.action}`).join(", ") : answer.decision ? `${answer.decision}: ${answer.action}` : null)) : el("p", { class: "quiet small" }, "No model was asked, or nobody looked at its answer."),
        answer.course ? [el("h3", {}, "How it was written"), drawCourse(answer.course)] : null,
        decision.content === undefined ? null : [el("h3", {}, "What the user said"), el("pre", { class: "source said", tabindex: 0 }, decision.content || "(no text)")],
        el("h3", {}, "As it came"), el("details", {}, el("summary", { class: "small" }, "JSON"), el("pre", { class: "source", tabindex: 0 }, JSON.stringify(decision, null, 2))));
      try {
        const { tree } = await post("/debug/tree", decision);
        if (chosen === decision) put(rules, drawRules(tree, decision.decision));
      } catch (error) {
        if (chosen !== decision) return;
        const seen = Object.entries(decision.signals);
        put(rules, el("p", { class: "quiet small" }, error.status === 409 ? "Another policy is in force by now; this is what the signals read." : error.message), readings(seen));
      }
    }
    function readings(pairs) {
      const heads = [["Signal"], ["Reading"], ["Score", "n"]];
      return table(heads, pairs.map(([name, each]) => row(heads, [name, verdict(each), each.score === null ? "" : number(each.score)])), "Signals");
    }
    return { title: "Live", node, decided: (fresh) => { if (paused) waiting += fresh.length; draw(false); }, shown: () => draw(true), close, pause: turn, filter: () => filter.focus() };
  }
  const verdict = (reading) => [sized(reading.matched === null ? "unknown" : String(reading.matched), reading.matched === null ? "?" : reading.matched ? "✓" : "✕"), " ", reading.label || reading.error || ""];

  const MARKS = { true: "✓", kept: "✓", false: "✕", unknown: "?", "not evaluated": "–" };
  const mark = (value) => sized(value === "not evaluated" ? "none" : value, MARKS[value]);
  function drawRules(tree, won) {
    const branch = (rule) => el("li", {}, el("div", { class: "row" }, mark(rule.value), el("span", { class: rule.signal ? "mono" : "" }, rule.text), el("span", { class: "said" }, rule.said ? rule.said.replace(/^(true|false|unknown|not evaluated)(, )?/, "") : "")), rule.of ? el("ul", {}, rule.of.map(branch)) : null);
    return el("ul", { class: "rules" }, tree.map((each) => el("li", { class: `clause ${each.decision === won ? "won" : ""} ${each.value === "not evaluated" ? "off" : ""}` },
      el("div", { class: "row" }, mark(each.value), el("span", { class: "name" }, each.decision), el("span", { class: "said" }, `→ ${each.does}`)),
      each.notes.length ? el("div", { class: "said small" }, each.notes.join("; ")) : null,
      each.rule ? el("ul", {}, branch(each.rule)) : null)));
  }

  // Playground

  const draft = { text: null, from: null, message: "Prove that the square root of 2 is irrational, step by step.", system: "", model: "auto", path: "/v1/chat/completions", headers: "", raw: null };
  function playground() {
    const verdictBox = el("div", { class: "verdict", "aria-live": "polite" }, el("strong", {}, "…"));
    const rules = el("div", {}), signals = el("div", {}), costs = el("div", {}), changes = el("div", {});
    const problems = el("ul", { class: "problems" });
    const state = el("span", { class: "note", role: "status" });
    const message = el("textarea", { id: "message", rows: 5, oninput: () => { draft.message = message.value; later(); } });
    const system = el("textarea", { id: "system", rows: 2, oninput: () => { draft.system = system.value; later(); } });
    const model = el("input", { id: "model", list: "models", oninput: () => { draft.model = model.value; later(); } });
    const path = el("select", { id: "path", onchange: () => { draft.path = path.value; later(); } }, ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions", "/v1/embeddings"].map((each) => el("option", {}, each)));
    const headers = el("textarea", { id: "headers", rows: 2, class: "mono", placeholder: "x-tier: gold", spellcheck: "false", oninput: () => { draft.headers = headers.value; later(); } });
    const raw = el("textarea", { id: "raw", rows: 12, class: "mono", spellcheck: "false", oninput: () => { draft.raw = raw.value; later(); } });
    message.value = draft.message; system.value = draft.system; model.value = draft.model; path.value = draft.path; headers.value = draft.headers;
    const form = el("div", {}, el("div", { class: "field" }, el("label", { for: "message" }, "Message"), message), el("div", { class: "field" }, el("label", { for: "system" }, "System prompt"), system), el("div", { class: "field" }, el("label", { for: "model" }, "Model that the request names"), model, el("datalist", { id: "models" })));
    const rawBox = el("div", { class: "field" }, el("label", { for: "raw" }, "Body"), raw);
    const modes = [["Form", false], ["JSON", true]].map(([text, json]) => el("button", { type: "button", "aria-pressed": String((draft.raw !== null) === json), onclick: () => { draft.raw = json ? (draft.raw === null ? JSON.stringify(body(), null, 2) : draft.raw) : null; shape(); later(); } }, text));
    function shape() {
      const json = draft.raw !== null;
      modes.forEach((each, index) => each.setAttribute("aria-pressed", String(json === (index === 1))));
      form.classList.toggle("hidden", json);
      rawBox.classList.toggle("hidden", !json);
      if (json) raw.value = draft.raw;
    }
    function body() {
      const text = draft.message;
      const messages = [...(draft.system && draft.path !== "/v1/messages" ? [{ role: "system", content: draft.system }] : []), { role: "user", content: text }];
      if (draft.path === "/v1/responses") return { model: draft.model, input: text, ...(draft.system ? { instructions: draft.system } : {}) };
      if (draft.path === "/v1/completions") return { model: draft.model, prompt: text };
      if (draft.path === "/v1/embeddings") return { model: draft.model, input: text };
      if (draft.path === "/v1/messages") return { model: draft.model, max_tokens: 1024, messages, ...(draft.system ? { system: draft.system } : {}) };
      return { model: draft.model, messages };
    }
    const gutter = el("div", { class: "gutter", "aria-hidden": "true" });
    const editor = el("textarea", { "aria-label": "The policy to try", spellcheck: "false", autocapitalize: "off", wrap: "off", oninput: () => { draft.text = editor.value; number_(); later(); }, onscroll: () => { gutter.scrollTop = editor.scrollTop; } });
    const reset = el("button", { type: "button", onclick: () => { draft.text = known.text; draft.from = known.policy.policy; editor.value = draft.text; number_(); later(); } }, "Policy in force");
    const copy = el("button", { type: "button", onclick: async () => { await navigator.clipboard.writeText(editor.value); copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); } }, "Copy");
    const last = el("select", { "aria-label": "How many decisions" }, [100, 500, 2000].map((each) => el("option", { value: each }, `last ${each}`)));
    const replayed = el("div", { "aria-live": "polite" });
    const replay = el("button", { type: "button", class: "primary", onclick: () => again() }, "What would change?");
    const edited = el("span", { class: "tag accent hidden" }, "edited");
    let found = [];
    function number_() {
      const lines = editor.value.split("\n").length;
      const worst = new Map();
      for (const each of found) if (worst.get(each.line) !== "error") worst.set(each.line, each.severity);
      put(gutter, Array.from({ length: lines }, (_, index) => el("div", { class: worst.has(index + 1) ? `${worst.get(index + 1)}-line` : "" }, index + 1)));
      gutter.scrollTop = editor.scrollTop;
      edited.classList.toggle("hidden", editor.value === known.text);
    }
    function jump(problem) {
      const lines = editor.value.split("\n");
      const start = sum(lines.slice(0, problem.line - 1), (line) => line.length + 1) + problem.column - 1;
      editor.focus();
      editor.setSelectionRange(start, start + Math.max(1, (/^[^\s:,}\]]+/.exec(lines[problem.line - 1].slice(problem.column - 1)) || [" "])[0].length));
      editor.scrollTop = Math.max(0, (problem.line - 6) * 20);
    }
    const sending = sender(() => {
      const { request, path: where, headers: given } = question();
      return { request: draft.raw === null ? JSON.stringify({ ...body(), ...(where in STREAMS ? { stream: true, ...STREAMS[where] } : {}) }) : request, path: where, headers: given };
    }, () => editor.value !== known.text);
    const node = el("div", {},
      el("div", { class: "head" }, el("h1", {}, "Playground"), el("span", { class: "quiet" }, "Nothing is sent to a model unless you ask, and nothing in force changes."), state),
      el("div", { class: "ground" },
        el("div", { class: "stack" },
          el("section", { class: "panel" }, el("header", {}, el("h2", {}, "Request"), el("span", { class: "note" }, el("span", { class: "segments", role: "group", "aria-label": "How to write the request" }, modes))),
            form, rawBox, el("div", { class: "two" }, el("div", {}, el("label", { for: "path" }, "API"), path), el("div", {}, el("label", { for: "headers" }, "Headers, one a line"), headers)), sending.asks),
          el("section", { class: "panel" }, el("header", {}, el("h2", {}, "Policy"), edited, el("span", { class: "note" }, reset, " ", copy)), el("div", { class: "editor" }, gutter, editor), problems),
          panel("Replay", "by what the signals read then", el("p", { class: "quiet small" }, "What the policy above makes of decisions that the one in force has made. Where a rule needs a signal that was not read, or that is another now, it cannot be told."), el("div", { class: "head small" }, last, replay), replayed)),
        el("div", { class: "stack" },
          sending.panel,
          el("section", { class: "panel" }, el("header", {}, el("h2", {}, "Decision")), verdictBox, el("h3", {}, "Rules"), rules),
          panel("Signals", "all of them, also those that no rule asked", signals),
          panel("Estimated cost", "by each model's price", costs),
          panel("What the model's server gets", "beside the request as it came", changes))));
    const off = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Playground")), el("section", { class: "panel" }, empty("The playground is off", "It tries requests against edited copies of the policy, in a process of its own that takes the memory of one worker.", el("code", {}, "pointsman serve POLICY --admin 127.0.0.1:9090 --playground"))));
    const box = el("div", {}, el("p", { class: "quiet" }, "Asking the router…"));

    let timer = 0;
    let asking = null;
    function later() { clearTimeout(timer); timer = setTimeout(run, 350); state.textContent = "…"; }
    function question() {
      const pairs = draft.headers.split("\n").map((line) => /^\s*([^:\s]+)\s*:\s*(.*?)\s*$/.exec(line)).filter(Boolean).map((match) => [match[1], match[2]]);
      return { policy: editor.value, request: draft.raw === null ? JSON.stringify(body()) : draft.raw, path: draft.path, headers: Object.fromEntries(pairs) };
    }
    async function run() {
      if (asking) asking.abort();
      asking = new AbortController();
      state.textContent = "Deciding…";
      try {
        show(await post("/playground", question(), asking.signal));
        state.textContent = "";
      } catch (error) {
        if (error.name === "AbortError") return;
        state.textContent = `No answer: ${error.message}`;
        if (error.status === 503) { clearTimeout(timer); timer = setTimeout(run, 3000); } // it starts, or is busy
      }
    }
    function show(answer) {
      found = answer.problems;
      number_();
      put(problems, found.length ? found.slice(0, 100).map((each) => el("li", {}, el("span", { class: "tag " + (each.severity === "error" ? "bad" : "warn") }, each.severity), el("button", { class: "link", type: "button", onclick: () => jump(each) }, `${each.line}:${each.column}`), el("span", {}, el("code", {}, each.code), " ", each.message))) : el("li", { class: "quiet" }, "No problem found."));
      const told = answer.explained;
      const errors = found.filter((each) => each.severity === "error").length;
      verdictBox.classList.toggle("bad", !told || told.action === "respond");
      if (!told) {
        for (const each of [rules, signals, costs, changes]) put(each, el("p", { class: "quiet small" }, "–"));
        put(verdictBox, el("strong", {}, `${errors} error${errors === 1 ? "" : "s"} in the policy`), el("span", {}, "Mend the policy to see what it decides."));
        return;
      }
      put(verdictBox, el("strong", {}, named(told.decision)), el("span", {}, told.outcome), told.chosen ? el("div", { class: "small" }, `Chosen: ${told.chosen}`) : null, told.reasons.map((each) => el("div", { class: "small" }, each)), el("div", { class: "small quiet" }, `decided in ${time(told.us / 1e6)}`));
      put(rules, told.tree.length ? drawRules(told.tree, told.decision) : el("p", { class: "quiet small" }, "No rule was asked."));
      const heads = [["Signal"], ["Reading"], ["Score", "n"], ["Time", "n"]];
      const read = Object.entries(told.signals).filter(([, each]) => each.evaluated);
      put(signals, read.length ? table(heads, read.map(([name, each]) => row(heads, [name, verdict(each), each.score === null ? "" : number(each.score), time(each.us / 1e6)])), "Signals") : empty("No signal was read"));
      const most = Math.max(0, ...told.costs.map((each) => each.money || 0));
      put(costs, told.costs.length ? told.costs.map((each) => bar(each.model === told.model ? `${each.model} ← takes it` : each.model, each.money === null ? "no price" : money(each.money), most ? each.money / most : 0)) : empty("No model is asked"));
      put(changes, told.changed.length ? el("dl", { class: "facts" }, told.changed.map((each) => [el("dt", {}, el("code", {}, each.where)), el("dd", {}, each.now)])) : el("p", { class: "quiet small" }, "The request goes on as it came."));
    }
    async function again() {
      replay.disabled = true;
      put(replayed, el("p", { class: "quiet" }, "Replaying…"));
      try {
        const { replay: result, problems: wrong } = await post("/playground", { policy: editor.value, replay: Number(last.value) });
        put(replayed, result ? told(result) : el("p", { class: "error" }, `The policy has errors (${wrong.filter((each) => each.severity === "error").length}): mend them first.`));
      } catch (error) {
        put(replayed, el("p", { class: "error", role: "alert" }, error.message));
      }
      replay.disabled = false;
    }
    function told(result) {
      if (!result.decisions) return empty("No decision to replay yet", "Send requests through Envoy first.");
      const untold = sum(result.untold, (each) => each.count);
      const heads = [["Now"], ["With this policy"], ["Requests", "n"]];
      return [
        el("p", {}, el("strong", {}, `${number(result.changed)} of ${number(result.decisions)} would change`), `, ${number(result.same)} stay the same${untold ? `, ${number(untold)} cannot be told` : ""}.`),
        result.changes.length ? table(heads, result.changes.map((each) => row(heads, [each.before, each.after, number(each.count)])), "What would change") : null,
        result.untold.length ? el("ul", { class: "small quiet" }, result.untold.map((each) => el("li", {}, `${number(each.count)}: ${each.why}`))) : null,
      ];
    }
    let begun = false;
    function update() {
      if (!known.state || known.text === null) return;
      if (!known.state.playground) { if (box.firstChild !== off) put(box, off); return; }
      if (begun) return;
      begun = true;
      if (draft.text === null) { draft.text = known.text; draft.from = known.policy.policy; }
      editor.value = draft.text;
      put(box, node);
      sending.asks.classList.toggle("hidden", !known.state.sends);
      put(form.querySelector("datalist"), [...known.policy.auto, ...known.policy.models.map((each) => each.name)].map((each) => el("option", { value: each })));
      shape();
      number_();
      run();
    }
    function reloaded() {
      if (!begun) return;
      if (draft.from !== known.policy.policy && draft.text !== known.text && editor.value === draft.text && edited.classList.contains("hidden")) { draft.text = known.text; draft.from = known.policy.policy; editor.value = draft.text; later(); }
      number_();
    }
    return { title: "Playground", node: box, update, reloaded };
  }

  // A request that is really sent, and its answer as it comes

  const STREAMS = { "/v1/chat/completions": { stream_options: { include_usage: true } }, "/v1/completions": { stream_options: { include_usage: true } }, "/v1/responses": {}, "/v1/messages": {} };
  // What an event of a stream, or a whole answer, says: its text, who wrote it, how it came about. By what APIs it may be.
  function heard(found) {
    const response = found.response || found;
    const choice = (found.choices || [])[0] || {};
    const parts = (list) => (list || []).map((each) => each.text || "").join("");
    const whole = choice.message ? choice.message.content : Array.isArray(found.content) ? parts(found.content) : found.object === "response" ? (found.output || []).map((each) => parts(each.content)).join("") : null;
    const vector = ((found.data || [])[0] || {}).embedding;
    return {
      text: whole || (choice.delta || {}).content || choice.text || (found.type === "response.output_text.delta" ? found.delta : found.type === "content_block_delta" ? (found.delta || {}).text : "") || (vector ? `a vector of ${vector.length} numbers` : ""),
      thought: (choice.delta || choice.message || {}).reasoning_content || (found.type === "content_block_delta" ? (found.delta || {}).thinking : "") || "",
      model: response.model || (found.message || {}).model,
      usage: response.usage || (found.message || {}).usage,
      error: found.error ? found.error.message || JSON.stringify(found.error) : null,
    };
  }
  function sender(request, edited) {
    const go = el("button", { type: "button", class: "primary", onclick: () => (going ? going.abort() : send()) }, "Send through Envoy");
    const why = el("span", { class: "small quiet" }, "Asks a model, and costs what that costs.");
    const asks = el("div", { class: "asks hidden" }, go, why);
    const facts = el("div", { class: "tags" }), said = el("div", { class: "written", tabindex: 0, role: "region", "aria-label": "The answer's text" }), drawn = el("div", {}), state = el("span", { class: "note", role: "status" });
    const box = el("section", { class: "panel hidden", "aria-label": "The answer" }, el("header", {}, el("h2", {}, "Answer"), state), facts, said, drawn);
    let going = null;
    const key = (served) => { const found = known.policy && known.policy.models.find((each) => each.served === served || each.name === served); return found ? found.name : served; };

    async function send() {
      const mine = going = new AbortController();
      const begun = performance.now();
      const asked = request();
      const answer = { text: [], usage: null, head: null, error: null, first: null, seconds: null, runs: [] };
      go.textContent = "Stop";
      why.textContent = edited() ? "The policy in force decides, not the edited copy." : "";
      box.classList.remove("hidden");
      put(said); put(drawn); put(facts);
      state.textContent = "Waiting for the answer…";
      let soon = 0;
      const later = () => { if (!soon) soon = requestAnimationFrame(() => { soon = 0; draw(answer); }); };
      try {
        const reply = await ask("/playground/send", { method: "POST", body: JSON.stringify(asked), headers: { "content-type": "application/json" }, signal: mine.signal });
        if (!reply.ok) throw new Answer(reply.status, (await reply.text()).trim());
        const inner = eventLines();
        let whole = "";
        for await (const events of streamed(reply)) {
          for (const [name, data] of events) {
            const found = JSON.parse(data);
            if (name === "head") { answer.head = found; answer.first = (performance.now() - begun) / 1000; }
            else if (name === "error") answer.error = found.error;
            else if (name === "end") answer.seconds = found.seconds;
            else if (isStream(answer.head)) for (const [, part] of inner(found)) { if (part !== "[DONE]") hear(answer, part); }
            else whole += found;
          }
          later();
        }
        if (whole) hear(answer, whole);
        state.textContent = "";
      } catch (error) {
        answer.error = error.name === "AbortError" ? "Stopped." : error.message;
        state.textContent = "";
      }
      if (going !== mine) return;
      going = null;
      cancelAnimationFrame(soon);
      go.textContent = "Send through Envoy";
      draw(answer, true);
    }
    const header = (head, name) => Object.entries(head.headers).reduce((found, [key_, value]) => (key_.toLowerCase() === name ? value : found), "");
    const isStream = (head) => header(head, "content-type").startsWith("text/event-stream");
    function hear(answer, text) {
      let found;
      try { found = heard(JSON.parse(text)); } catch { found = { text, error: null }; }
      if (found.error) answer.error = found.error;
      if (found.usage) answer.usage = { ...answer.usage, ...found.usage };
      for (const [words, look] of [[found.thought, "thought"], [found.text, ""]]) {
        if (!words) continue;
        const model = found.model ? key(found.model) : "";
        const last = answer.runs[answer.runs.length - 1];
        if (last && last.model === model && last.look === look) last.text += words;
        else answer.runs.push({ model, look, text: words });
      }
    }
    // By its steps, where they are known: until then by who writes.
    function parts(answer, course) {
      const plain = answer.runs.filter((run) => !run.look);
      if (!course || !course.steps || !course.steps.length) {
        const several = new Set(plain.map((each) => each.model)).size > 1;
        return answer.runs.map((run) => ({ text: run.text, look: run.look || (several ? hand(run.model) : ""), title: run.model }));
      }
      const letters = Array.from(plain.map((run) => run.text).join(""));
      let at = 0;
      return course.steps.map((step, index) => {
        const end = index === course.steps.length - 1 ? letters.length : at + step.characters;
        const written = letters.slice(at, end).join(""), words = written.trimEnd();
        const part = { text: words, blank: written.slice(words.length), look: hand(step.model), title: `Step ${index + 1}: ${step.model}, ${did(step)}`, mark: index + 1 };
        at = end;
        return part;
      });
    }
    function draw(answer, done) {
      const { head, usage } = answer;
      const course = usage && usage.pointsman;
      put(said, parts(answer, course).map((part) => [el("span", { class: `part ${part.look}`, title: part.title || null }, part.mark ? el("sup", { "aria-hidden": "true" }, part.mark) : null, part.text), part.blank]), done || !head ? null : el("span", { class: "caret", "aria-hidden": "true" }));
      said.classList.toggle("hidden", !answer.runs.length);
      put(drawn, answer.error ? el("p", { class: "error", role: "alert" }, answer.error) : null, course ? drawCourse(course) : null);
      if (!head) return;
      const tokens = usage ? [usage.prompt_tokens ?? usage.input_tokens, usage.completion_tokens ?? usage.output_tokens] : null;
      const tag = (text, look) => (text ? el("span", { class: `tag ${look || ""}` }, text) : null);
      put(facts, tag(`${head.status}`, head.status < 400 ? "good" : "bad"), tag(named(header(head, "x-pointsman-decision")), "accent"), header(head, "x-pointsman-model").split("+").filter(Boolean).map(chip),
        tag(`first byte ${time(answer.first)}`), answer.seconds === null ? null : tag(`all of it ${time(answer.seconds)}`), tokens ? tag(`${number(tokens[0])} → ${number(tokens[1])} tokens`) : null, course && course.cost !== undefined ? tag(`cost ${money(course.cost)}`) : null);
    }
    return { asks, panel: box };
  }

  // Policy

  function policy() {
    const summary = el("div", {}), decisions = el("div", {}), choices = el("div", {}), candidate = el("div", {}), models = el("div", {}), signals = el("div", {}), findings = el("div", {});
    const source = el("pre", { class: "source", tabindex: 0, "aria-label": "The policy's text" });
    const node = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Policy"), summary),
      el("div", { class: "grid" }, wide(12, panel("Decisions", "in the order in which they are asked", decisions)), wide(6, panel("Models", null, models)), wide(6, panel("Signals", null, signals)), wide(6, panel("Choices of models", "by selector, since the router began", choices)), wide(6, panel("Candidate", "a second policy beside the one in force", candidate)), wide(12, panel("Findings", "what validate says", findings)),
        wide(12, el("section", { class: "panel" }, el("details", {}, el("summary", {}, "The file in force"), source)))));
    for (const each of [decisions, models, signals, choices, candidate]) put(each, el("p", { class: "loading" }, "…"));
    async function find() {
      if (known.findings !== null || !known.state) return;
      if (!known.state.playground) { put(findings, empty("Not looked for here", el("code", {}, "pointsman validate POLICY"))); return; }
      known.findings = [];
      try { known.findings = (await post("/playground", {})).problems; } catch (error) { put(findings, el("p", { class: "quiet" }, error.message)); return; }
      update();
    }
    function update() {
      if (!known.policy || !known.outcomes) return;
      const { policy } = known;
      const total = known.outcomes.total;
      const details = known.state.details;
      put(summary, el("code", { class: "quiet" }, policy.policy), details.agree === false ? el("span", { class: "tag warn" }, "workers do not agree yet") : null);
      const hits = new Map(), acted = new Map();
      for (const each of total.decisions) hits.set(named(each.decision), (hits.get(named(each.decision)) || 0) + each.count);
      for (const each of total.answers) acted.set(each.decision, (acted.get(each.decision) || 0) + each.count);
      const heads = [["#", "n"], ["Decision"], ["When"], ["Does"], ["Hits", "n"], ["Share", "n"]];
      const rows = policy.decisions.map((each, index) => {
        const count = (each.on === "answer" ? acted : hits).get(each.name) || 0;
        return row(heads, [index + 1, [each.on === "answer" ? null : swatch(each.name), " ", each.name, each.observe ? [" ", el("span", { class: "tag warn" }, "observes")] : null, each.on === "answer" ? [" ", el("span", { class: "tag accent" }, "on the answer")] : null, total.requests > 20 && !count ? [" ", el("span", { class: "tag" }, "no hit yet")] : null],
          el("code", {}, each.rule || "always"), each.does, number(count), share(count, total.requests)]);
      });
      rows.push(row(heads, ["", [swatch("default"), " default"], "no decision matched", policy.default, number(hits.get("default") || 0), share(hits.get("default") || 0, total.requests)]));
      put(decisions, table(heads, rows, "Decisions"));
      const asked = new Map(total.models.map((each) => [each.model, each.requests]));
      const heads2 = [["Model"], ["Served as"], ["Price in", "n"], ["out", "n"], ["Context", "n optional"], ["Requests", "n"]];
      put(models, table(heads2, policy.models.map((each) => row(heads2, [each.name, el("code", {}, each.served), each.priced ? money(each.input_price) : "–", each.priced ? money(each.output_price) : "–", each.context ? number(each.context) : "–", number(asked.get(each.name) || 0)])), "Models"));
      const heads3 = [["Signal"], ["Kind"], ["Cost", "optional"], ["Used by"]];
      put(signals, policy.signals.length ? table(heads3, policy.signals.map((each) => row(heads3, [each.name, each.kind, each.cost, each.used_by.length ? each.used_by.join(", ") : policy.signals.some((other) => other.inputs.includes(each.name)) ? "other signals" : el("span", { class: "tag" }, "nothing")])), "Signals") : empty("The policy has no signal"));
      put(choices, drawChoices(policy, total));
      learn();
      put(candidate, drawCandidate(details.candidate || ((details.workers || [])[0] || {}).candidate, total.candidate || []));
      if (known.findings) put(findings, known.findings.length ? el("ul", { class: "problems" }, known.findings.map((each) => el("li", {}, el("span", { class: "tag " + (each.severity === "error" ? "bad" : "warn") }, each.severity), el("span", {}, `line ${each.line}: `, el("code", {}, each.code), " ", each.message)))) : empty("No finding"));
      if (source.textContent !== known.text) source.textContent = known.text;
      find();
    }
    // What choices have learned from grades is asked for while it is looked at.
    let learned = {}, asked = 0;
    async function learn() {
      if (Date.now() - asked < 5000 || !known.policy.decisions.some((each) => each.selector)) return;
      asked = Date.now();
      try { learned = (await get("/selection")).decisions; } catch { return; } // the store may be away: what was known stays
      if (view && view.node === node) put(choices, drawChoices(known.policy, known.outcomes.total));
    }
    function drawLearned(names) {
      const heads = [["Decision"], ["Candidate"], ["Quality", "n"], ["Grades", "n"]];
      const rows = names.flatMap((name) => Object.entries((learned[name] || {}).models || {}).sort((a, b) => b[1].quality - a[1].quality)
        .map(([model, each], index) => row(heads, [index ? "" : name, model, each.quality.toFixed(2), number(each.grades)])));
      return rows.length ? table(heads, rows, "What was learned from grades") : null;
    }
    function drawChoices(policy, total) {
      const choosing = policy.decisions.filter((each) => each.selector);
      if (!choosing.length) return empty("No decision has a choice of models");
      const found = new Map();
      for (const each of total.choices) {
        const models = found.get(each.selector) || found.set(each.selector, new Map()).get(each.selector);
        const one = models.get(each.model) || models.set(each.model, { count: 0, why: [] }).get(each.model);
        one.count += each.count;
        one.why.push([each.why, each.count]);
      }
      return [...new Set(choosing.map((each) => each.selector))].map((selector) => {
        const models = [...(found.get(selector) || new Map())].sort((a, b) => b[1].count - a[1].count);
        const all = sum(models, ([, each]) => each.count);
        const names = choosing.filter((each) => each.selector === selector).map((each) => each.name);
        return el("div", { class: "choice" }, el("h3", {}, selector, " ", el("span", { class: "quiet" }, `for ${names.join(", ")}`)),
          models.length ? models.map(([model, each]) => [bar(model, `${number(each.count)} · ${share(each.count, all)}`, each.count / all), el("div", { class: "small quiet" }, each.why.sort((a, b) => b[1] - a[1]).slice(0, 4).map(([why, count]) => `${why} ${share(count, each.count)}`).join(" · "))]) : el("p", { class: "quiet small" }, "It has not chosen yet."), drawLearned(names));
      });
    }
    function drawCandidate(given, counts) {
      if (!given) return empty("There is none", el("code", {}, "pointsman serve POLICY --candidate FILE --canary 5"));
      const of = (outcome) => sum(counts.filter((each) => each.outcome === outcome), (each) => each.count);
      const compared = of("agree") + of("differ");
      return [el("dl", { class: "facts" }, el("dt", {}, "Policy"), el("dd", {}, el("code", {}, given.policy.slice(0, 23), "…")), el("dt", {}, "Decides"), el("dd", {}, given.share ? `${share(given.share, 1)} of the sessions, with effect` : "every request, without effect")),
        compared ? [bar("decides as the policy in force", `${number(of("agree"))} · ${share(of("agree"), compared)}`, of("agree") / compared), bar("decides otherwise", `${number(of("differ"))} · ${share(of("differ"), compared)}`, of("differ") / compared, "warn")] : el("p", { class: "quiet small" }, "Nothing was compared yet."),
        of("error") + of("skipped") ? el("p", { class: "small quiet" }, `${plural(of("error"), "error")}, ${number(of("skipped"))} left out`) : null];
    }
    return { title: "Policy", node, update, reloaded: update };
  }

  // The page

  const VIEWS = { overview, live, playground, policy };
  const made = {};
  function show() {
    if (signing) return;
    const name = location.hash.replace(/^#\//, "").split("?")[0];
    const chosen = VIEWS[name] ? name : "overview";
    for (const link of document.querySelectorAll(".views a")) link.dataset.view === chosen ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    made[chosen] = made[chosen] || VIEWS[chosen]();
    view = made[chosen];
    put(main, view.node);
    document.title = `${view.title} · Pointsman`;
    if (view.shown) view.shown();
    if (view.update) view.update();
  }
  function signIn(again) {
    if (signing) return;
    signing = true;
    view = null;
    if (following) following.abort();
    sessionStorage.removeItem(TOKEN);
    const token = el("input", { id: "token", type: "password", autocomplete: "current-password", required: true });
    put(main, el("section", { class: "panel signin" }, el("h1", {}, "Sign in"), el("p", { class: "quiet" }, "This router asks for the token of its --admin-token-file. It stays in this tab."),
      el("form", { onsubmit: (event) => { event.preventDefault(); sessionStorage.setItem(TOKEN, token.value.trim()); signing = false; begin(); } },
        el("div", {}, el("label", { for: "token" }, "Token"), token), again ? el("p", { class: "error", role: "alert" }, "That is not the token.") : null, el("button", { class: "primary" }, "Sign in"))));
    token.focus();
    $("health").className = "health";
    $("health").lastElementChild.textContent = "Signed out";
  }
  function begin() { show(); poll(); follow(); }

  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").addEventListener("click", () => {
    const dark = (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });
  $("help").addEventListener("click", () => $("keys").showModal());
  addEventListener("hashchange", () => { show(); scrollTo(0, 0); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && view && view.close) { view.close(); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog")) return;
    const index = "1234".indexOf(event.key);
    if (event.key.length === 1 && index >= 0) location.hash = `#/${Object.keys(VIEWS)[index]}`;
    else if (event.key === "?") $("keys").showModal();
    else if (event.key === "/" && view && view.filter) view.filter();
    else if (event.key === "p" && view && view.pause) view.pause();
    else return;
    event.preventDefault();
  });
  begin();
  setInterval(poll, POLL_MS);
})();
