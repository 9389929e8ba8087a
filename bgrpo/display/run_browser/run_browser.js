"use strict";
// Everything shown comes from a run's files and is untrusted: it reaches the page as text nodes and numbers only.
(() => {
  const index = window.bgrpoIndex;
  const steps = index.steps;
  const places = new Map(steps.map((entry, place) => [entry.step, place]));
  const NONE = "–";
  const STYLES = new Map([["correct", "good"], ["wrong", "bad"], ["scored", "plain"]]); // others stand out
  const MANY_COLUMNS = 8; // of a table: with more, cells are narrower
  const BESIDE_COLUMNS = 4; // of two tables side by side: rank, log-probability, reward, advantage
  const MAX_RESULTS = 200;
  const MAX_STEPS = 12; // named as those that kept a problem
  const SMOOTHING = 20; // a curve's strong line is the mean over steps / SMOOTHING steps
  const MAX_CHUNKS = 32; // kept in memory, about a megabyte each
  const MAX_DIFFERENCE = 600; // tokens of a text that are compared one by one
  const SVG = "http://www.w3.org/2000/svg";
  const at = (id) => document.getElementById(id);

  const state = { step: 0, group: 0, other: null, sort: "rank", down: false, hit: null, curve: index.curve };

  // --- small things ---

  /** An element with properties and children; strings become text nodes. */
  function make(name, properties, ...children) {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function number(value, digits = 2) {
    return typeof value === "number" ? value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−") : NONE;
  }

  /** A reward, an advantage, a metric: three digits after the point, unless that shows nothing or too much. */
  function figure(value) {
    const size = Math.abs(value ?? 0);
    if ((size >= 1e-9 && size < 5e-4) || size >= 1e6) return value.toExponential(1).replace("e+", "e").replaceAll("-", "−");
    return number(value, 3);
  }

  function signed(value) {
    const text = figure(value);
    return value > 0 && text !== "0.000" ? `+${text}` : text;
  }

  /** A text with what could not be seen of it, or would change how the rest is seen. */
  function visible(text) {
    return text
      .replace(/[\0-\x08\x0b-\x1f]/g, (character) => String.fromCharCode(0x2400 + character.charCodeAt(0)))
      .replace(/[\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g, code);
  }

  /** The same of a token, which may be nothing but blanks, or half of an emoji. */
  function visibleToken(piece) {
    if (/^ +$/.test(piece)) return "␣".repeat(piece.length);
    if (/^[\u200c\u200d\ufe0f]+$/.test(piece)) return [...piece].map(code).join("");
    return visible(piece).replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  }

  function code(character) {
    return `⟨U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  }

  /** Put children in place of an element's own; the keyboard's focus stays on what it was on. */
  function put(element, ...children) {
    const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    element.replaceChildren(...children);
    if (focused === undefined) return;
    [...element.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus({ preventScroll: true });
  }

  function outcomeOf(completion) {
    const style = STYLES.get(completion.outcome) ?? "";
    return make("span", { className: `outcome ${style}`, title: completion.detail }, completion.outcome);
  }

  /** The nearest step that is here. */
  function nearest(step) {
    let low = 0;
    let high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle].step < step) low = middle + 1;
      else high = middle;
    }
    return low > 0 && step - steps[low - 1].step < steps[low].step - step ? low - 1 : low;
  }

  // --- data, file by file ---

  const chunks = new Map();
  const coming = new Map();
  window.bgrpoChunk = (name, groups) => chunks.set(name, groups);

  function load(name) {
    if (chunks.has(name)) {
      const groups = chunks.get(name);
      chunks.delete(name); // to the end: used last
      chunks.set(name, groups);
      return Promise.resolve(groups);
    }
    if (!coming.has(name)) {
      const script = make("script", { src: `data/chunk-${String(name).padStart(5, "0")}.js` });
      const loaded = new Promise((resolve, reject) => {
        script.onload = () => (chunks.has(name) ? resolve(chunks.get(name)) : reject(new Error(script.src)));
        script.onerror = () => reject(new Error(script.src));
      }).finally(() => {
        script.remove();
        coming.delete(name);
        while (chunks.size > MAX_CHUNKS) chunks.delete(chunks.keys().next().value);
      });
      coming.set(name, loaded);
      document.head.append(script);
    }
    return coming.get(name);
  }

  async function groupsOf(place) {
    const { step, chunk } = steps[place];
    return (await load(chunk)).filter((group) => group.step === step);
  }

  // --- sorting and filtering ---

  function columnsOf(completions) {
    const columns = [
      { name: "rank", label: index.order, value: (c) => c.rank, show: (c) => String(c.rank) },
      { name: "log-probability", value: (c) => c.logprob, show: (c) => number(c.logprob) },
      { name: "reward", value: (c) => c.reward, show: (c) => figure(c.reward) },
      { name: "advantage", value: (c) => c.advantage, show: (c) => signed(c.advantage) },
      { name: "tokens", value: (c) => c.length, show: (c) => String(c.length) },
    ];
    if (completions.some((c) => c.score !== null)) {
      columns.push({ name: "score", value: (c) => c.score, show: (c) => figure(c.score) });
    }
    for (const part of new Set(completions.flatMap((c) => Object.keys(c.parts)))) {
      const value = (c) => (Object.hasOwn(c.parts, part) ? c.parts[part] : null);
      columns.push({ name: `part ${part}`, part, value, show: (c) => figure(value(c)) });
    }
    return columns;
  }

  /** In the chosen order; what has no value comes last, whatever the direction. */
  function sorted(completions, columns) {
    const { value } = columns.find((column) => column.name === state.sort) ?? columns[0];
    const sign = state.down ? -1 : 1;
    return [...completions].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a.rank - b.rank;
      return sign * (x - y) || a.rank - b.rank;
    });
  }

  function chosen(completions) {
    const outcome = at("outcome").value;
    return outcome ? completions.filter((c) => c.outcome === outcome) : completions;
  }

  // --- the tree of a group ---

  /** Merges equal first tokens; a node's children stand in the order in which the completions come. */
  function treeOf(completions) {
    const root = { next: new Map(), ends: [], count: 0 };
    for (const completion of completions) {
      let node = root;
      completion.tokens.forEach((token, place) => {
        if (!node.next.has(token)) {
          const [piece, logprob] = [completion.pieces[place] ?? "", completion.logprobs[place] ?? null];
          node.next.set(token, { token, piece, logprob, next: new Map(), ends: [], count: 0 });
        }
        node = node.next.get(token);
        node.count += 1;
      });
      node.ends.push(completion);
    }
    return root;
  }

  function tokenOf({ token, piece, logprob }) {
    const likely = logprob === null ? 1 : Math.exp(logprob);
    const title = `token ${token}, log-probability ${number(logprob, 4)}, probability ${number(100 * likely, 1)} %`;
    const element = make("span", { className: "token", title }, visibleToken(piece), make("small", {}, number(logprob)));
    element.style.setProperty("--unlikely", String(1 - Math.min(1, likely)));
    return element;
  }

  function leafOf(completion, columns) {
    const rest = completion.length - completion.tokens.length;
    const leaf = make("span", { className: "leaf" });
    leaf.dataset.rank = completion.rank;
    if (rest > 0) leaf.append(make("span", { className: "quiet" }, `… ${rest} more tokens`));
    leaf.append(make("b", {}, `#${completion.rank}`), outcomeOf(completion));
    leaf.append(`Σ ${number(completion.logprob)}`, ...columns.slice(2).flatMap((column) => leafValue(column, completion)));
    if (completion.detail) leaf.append(make("span", { className: "quiet" }, visible(completion.detail)));
    return leaf;
  }

  function leafValue(column, completion) {
    const skipped = column.name === "tokens" || column.value(completion) === null;
    return skipped ? [] : [make("span", {}, make("bdi", {}, column.part ?? column.label ?? column.name), ` ${column.show(completion)}`)];
  }

  function branchOf(first, before, columns) {
    const run = [first];
    let node = first;
    while (node.next.size === 1 && !node.ends.length) {
      [node] = node.next.values();
      run.push(node);
    }
    const sum = run.reduce((total, { logprob }) => total + (logprob ?? 0), before);
    const line = make("div", { className: "branch" }, make("span", { className: "tokens" }, ...run.map(tokenOf)));
    if (node.next.size) line.append(make("span", { className: "quiet" }, `Σ ${number(sum)} · ${node.count} below`));
    line.append(...node.ends.map((completion) => leafOf(completion, columns)));
    const item = make("li", {}, line);
    if (node.next.size) item.append(branches(node, sum, columns));
    return item;
  }

  function branches(node, sum, columns) {
    return make("ul", {}, ...[...node.next.values()].map((child) => branchOf(child, sum, columns)));
  }

  function drawTree(completions, columns) {
    const root = treeOf(completions);
    const list = branches(root, 0, columns);
    list.className = at("numbers").checked ? "tree" : "tree plain";
    at("tree").replaceChildren(list, ...root.ends.map((completion) => leafOf(completion, columns)));
  }

  // --- tables ---

  function headOf(column, sortable) {
    if (!sortable) return make("th", { scope: "col" }, column.part ?? column.label ?? column.name);
    const isSorted = column.name === state.sort;
    const arrow = isSorted ? (state.down ? "\u00a0↓" : "\u00a0↑") : "";
    const button = make("button", { type: "button" }, (column.part ?? column.label ?? column.name) + arrow);
    button.dataset.key = column.name;
    button.onclick = () => sortBy(column.name, isSorted ? !state.down : column.name !== "rank");
    const head = make("th", { scope: "col" }, button);
    head.setAttribute("aria-sort", isSorted ? (state.down ? "descending" : "ascending") : "none");
    return head;
  }

  function textCell(text) {
    return make("td", { className: "text" }, make("div", { className: "long" }, visible(text)));
  }

  function tableOf(completions, columns, sortable) {
    const [rank, ...rest] = columns;
    const heads = [headOf(rank, sortable), make("th", { className: "label", scope: "col" }, "outcome")];
    heads.push(make("th", { className: "text", scope: "col" }, "completion"));
    const rows = completions.map((completion) => {
      const row = make("tr", {}, make("td", {}, rank.show(completion)));
      row.dataset.rank = completion.rank;
      row.append(make("td", { className: "label" }, outcomeOf(completion)));
      row.append(textCell(completion.text + (completion.finished ? "" : " [cut]")));
      row.append(...rest.map((column) => make("td", {}, column.show(completion))));
      return row;
    });
    heads.push(...rest.map((column) => headOf(column, sortable)));
    const className = columns.length > MANY_COLUMNS ? "many" : "";
    return make("table", { className }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  }

  // --- the difference between two steps ---

  async function drawDifference(group, turn) {
    const place = state.other === null ? -1 : places.get(state.other) ?? -1;
    const others = steps.filter((entry) => entry.step !== group.step && entry.problems.includes(group.problem));
    const label = others.length > MAX_STEPS ? `${others.length} steps, among them` : "step";
    put(at("same"), others.length ? `Problem ${group.problem} was kept at ${label}` : "", ...nearestOf(others, group.step).map(stepButton));
    if (place < 0) {
      put(at("difference"), make("p", { className: "quiet" }, "Give a step to compare this group with."));
      return;
    }
    const theirs = await groupsOf(place);
    if (turn !== turns) return;
    const same = theirs.find((candidate) => candidate.problem === group.problem);
    const [before, after] = state.other < group.step ? [same, group] : [group, same];
    if (same) put(at("difference"), ...differenceOf(before, after));
    else put(at("difference"), ...besideOf(group, theirs[Math.min(state.group, theirs.length - 1)]));
  }

  /** The first one, the last one, and those nearest to a step, in order. */
  function nearestOf(entries, step) {
    const [first, last] = [entries[0], entries.at(-1)];
    const far = (entry) => (entry === first || entry === last ? -1 : Math.abs(entry.step - step));
    return [...entries].sort((a, b) => far(a) - far(b)).slice(0, MAX_STEPS).sort((a, b) => a.step - b.step);
  }

  function stepButton(entry) {
    const button = make("button", { type: "button" }, String(entry.step));
    button.dataset.key = entry.step;
    button.onclick = () => go({ other: entry.step });
    return button;
  }

  function besideOf(...groups) {
    const columns = columnsOf(groups.flatMap((group) => group.completions)).slice(0, BESIDE_COLUMNS);
    const panels = groups.map((group) => {
      const table = tableOf(sorted(chosen(group.completions), columnsOf(group.completions)), columns, false);
      const title = make("p", { className: "quiet" }, `Step ${group.step}, problem ${group.problem}: `);
      return make("div", {}, title, make("div", { className: "text long" }, visible(group.prompt)), table);
    });
    const text = `Step ${groups[1].step} kept no group of problem ${groups[0].problem}; two different problems stand side by side.`;
    return [make("p", { className: "quiet" }, text), make("div", { className: "beside" }, ...panels)];
  }

  function differenceOf(before, after) {
    const byText = (group) => new Map([...group.completions].reverse().map((c) => [c.text, c]));
    const [then, now] = [byText(before), byText(after)];
    const texts = [...new Set([...after.completions, ...before.completions].map((c) => c.text))];
    const rows = texts
      .map((text) => [text, then.get(text), now.get(text)])
      .filter(([, old, fresh]) => chosen([old, fresh].filter(Boolean)).length);
    const shown = [["rank", (value) => number(value, 0)], ["logprob", number], ["reward", figure], ["advantage", signed]];
    const heads = ["completion", "change", index.order, "log-probability", "reward", "advantage"].map((name, place) =>
      make("th", { scope: "col", className: place < 2 ? "label" : "" }, name));
    const body = rows.map(([text, old, fresh]) => {
      const change = old && fresh ? "in both" : fresh ? "new" : "gone";
      const style = old && fresh ? "" : fresh ? "up" : "down";
      const cells = shown.map(([name, show]) => make("td", {}, `${show(old?.[name])} → ${show(fresh?.[name])}`));
      return make("tr", {}, textCell(text), make("td", { className: `label ${style}` }, change), ...cells);
    });
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...body));
    table.prepend(make("caption", {}, `Problem ${after.problem}: step ${before.step} → step ${after.step}`));
    const words = make("p", { className: "text" }, ...wordsOf(before.completions[0].pieces, after.completions[0].pieces));
    return [table, make("p", { className: "quiet" }, "Rank 1, token by token: gone and new ones are marked."), words];
  }

  /** Longest common subsequence of two lists of tokens, as plain, deleted and inserted text. */
  function wordsOf(old, fresh) {
    const [a, b] = [old.slice(0, MAX_DIFFERENCE), fresh.slice(0, MAX_DIFFERENCE)];
    const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
      }
    }
    const parts = [];
    for (let i = 0, j = 0; i < a.length || j < b.length; ) {
      if (i < a.length && j < b.length && a[i] === b[j]) parts.push(visible(a[i]), " ".repeat(Number(!/^\s/.test(b[j + 1] ?? " ")))), (i += 1), (j += 1);
      else if (j >= b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) parts.push(make("del", {}, visible(a[i++])), " ");
      else parts.push(make("ins", {}, visible(b[j++])), " ");
    }
    return parts;
  }

  // --- search ---

  let searches = 0;

  async function search() {
    const mine = ++searches;
    const words = new RegExp(at("words").value.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "iu"); // lower case may be longer
    at("results").replaceChildren();
    at("clear").hidden = false;
    let count = 0;
    try {
      for (let name = 0; name < index.chunks; name += 1) {
        const groups = await load(name);
        if (mine !== searches) return;
        for (const group of groups) {
          for (const completion of chosen(group.completions)) {
            const where = [completion.text, group.prompt, completion.detail].find((text) => words.test(text));
            if (where === undefined) continue;
            count += 1;
            if (count <= MAX_RESULTS) at("results").append(make("li", {}, resultOf(group, completion, where, words)));
          }
        }
        at("found").textContent = `${count} found; ${name + 1} of ${index.chunks} files searched`;
      }
      at("found").textContent = `${count} found` + (count > MAX_RESULTS ? `, the first ${MAX_RESULTS} are listed` : "");
    } catch (error) {
      at("found").textContent = `${error.message} could not be read: run bgrpo show again`;
    }
  }

  function resultOf(group, completion, text, words) {
    const { 0: match, index: start } = words.exec(text);
    const from = Math.max(0, start - 40);
    const end = start + match.length;
    const label = `step ${group.step} · problem ${group.problem} · #${completion.rank} `;
    const snippet = make("span", { className: "text" }, ` ${from ? "…" : ""}${visible(text.slice(from, start))}`);
    snippet.append(make("mark", {}, visible(text.slice(start, end))), visible(text.slice(end, end + 80)));
    const button = make("button", { type: "button" }, label, outcomeOf(completion), snippet);
    button.onclick = () => go({ step: group.step, group: group.group, hit: completion.rank });
    return button;
  }

  function closeSearch() {
    searches += 1;
    at("results").replaceChildren();
    at("found").textContent = "";
    at("clear").hidden = true;
  }

  // --- the page ---

  function drawSteps() {
    const entry = steps[places.get(state.step)];
    at("step").value = entry.step;
    at("slider").value = places.get(entry.step);
    at("slider").setAttribute("aria-valuetext", `step ${entry.step}, ${state.curve} ${figure(valueOf(entry))}`);
    at("back").disabled = places.get(entry.step) === 0;
    at("forward").disabled = places.get(entry.step) === steps.length - 1;
    const names = [...new Set([index.curve, "reward", ...Object.keys(entry.metrics)])];
    const figures = names.flatMap((name, place) => [
      place ? " · " : "",
      make("span", {}, make("bdi", {}, name.replaceAll("_", " ")), ` ${figure(valueOf(entry, name))}`),
    ]);
    at("figures").replaceChildren(...figures);
    const x = String(xOf(places.get(entry.step)));
    const line = at("curve").querySelector("line");
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: "0", y2: "64" })) line.setAttribute(name, value);
  }

  function xOf(place) {
    return steps.length > 1 ? (1000 * place) / (steps.length - 1) : 500;
  }

  function valueOf(entry, name = state.curve) {
    return (["reward", "score"].includes(name) ? entry[name] : entry.metrics[name]) ?? null;
  }

  function drawCurve() {
    const points = steps.map((entry, place) => [xOf(place), valueOf(entry)]).filter(([, value]) => value !== null);
    const [low, high] = points.reduce(([least, most], [, value]) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
    const y = (value) => (high > low ? 60 - (56 * (value - low)) / (high - low) : 32);
    const width = Math.floor(points.length / SMOOTHING);
    const path = (values, name) => {
      const element = document.createElementNS(SVG, "path");
      element.setAttribute("class", name);
      element.setAttribute("d", values.length ? `M${values.map(([x, value]) => `${x.toFixed(1)} ${y(value).toFixed(1)}`).join("L")}` : "");
      return element;
    };
    const means = points.map(([x], place) => {
      const latest = points.slice(Math.max(0, place + 1 - width), place + 1);
      return [x, latest.reduce((sum, [, value]) => sum + value, 0) / latest.length];
    });
    const paths = width > 1 ? [path(points, "faint"), path(means, "")] : [path(points, "")];
    at("curve").replaceChildren(...paths, document.createElementNS(SVG, "line"));
    const range = points.length ? `from ${figure(low)} to ${figure(high)}` : "not measured";
    at("curve").setAttribute("aria-label", `Mean ${state.curve} of each step, ${range}`);
    at("range").textContent = range + (width > 1 ? `; the strong line is the mean of ${width} steps` : "");
  }

  function resultsOf({ completions }) {
    const right = completions.filter((c) => c.outcome === "correct").length;
    if (index.outcomes.includes("correct")) return `${right} of ${completions.length} correct`;
    const rewards = completions.map((c) => c.reward).filter((reward) => reward !== null);
    const [least, most] = [figure(Math.min(...rewards)), figure(Math.max(...rewards))];
    if (!rewards.length) return "no rewards";
    return least === most ? `reward ${least}` : `rewards ${least} to ${most}`;
  }

  /** Why the update left a group out. */
  function leftOut({ completions }) {
    if (completions.some((c) => c.advantage !== null)) return "";
    const differ = new Set(completions.map((c) => c.reward).filter((reward) => reward !== null)).size > 1;
    return `; no advantages: the update left this group out${differ ? "" : ", for its rewards do not differ"}`;
  }

  function drawGroups(groups) {
    const buttons = groups.map((group, place) => {
      const button = make("button", { type: "button" }, `problem ${group.problem} · ${resultsOf(group)}`);
      button.dataset.key = place;
      button.setAttribute("aria-pressed", String(place === state.group));
      button.onclick = () => go({ group: place });
      return button;
    });
    put(at("groups"), ...buttons);
    const group = groups[state.group];
    const passages = (group.passages ?? []).map((text, number) => [`passage ${number + 1}`, text]);
    const fields = [["prompt", group.prompt], ...passages, ["answer", group.answer], ["category", group.category]];
    at("problem").replaceChildren(...fields.filter(([, text]) => text).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, visible(text))]));
  }

  let turns = 0;

  async function draw() {
    const turn = ++turns;
    drawSteps();
    at("other").value = state.other ?? "";
    try {
      const groups = await groupsOf(places.get(state.step));
      if (turn !== turns) return;
      state.group = Math.max(0, Math.min(state.group, groups.length - 1));
      drawGroups(groups);
      const group = groups[state.group];
      const columns = columnsOf(group.completions);
      if (!columns.some((column) => column.name === state.sort)) [state.sort, state.down] = ["rank", false];
      at("sort").replaceChildren(...columns.map(({ name, label }) => make("option", { value: name, selected: name === state.sort }, label ?? name)));
      at("turn").textContent = state.down ? "largest first" : "smallest first";
      const completions = sorted(chosen(group.completions), columns);
      drawTree(completions, columns);
      put(at("table"), tableOf(completions, columns, true));
      const kept = group.size > group.completions.length ? `; ${group.size - group.completions.length} more were not kept` : "";
      at("status").textContent = `${completions.length} of ${group.completions.length} completions shown${kept}${leftOut(group)}`;
      markHit();
      await drawDifference(group, turn);
    } catch (error) {
      at("status").textContent = `${error.message} could not be read: run bgrpo show again`;
    }
  }

  function markHit() {
    if (state.hit === null) return;
    const found = document.querySelectorAll(`#tree [data-rank="${state.hit}"], #table [data-rank="${state.hit}"]`);
    for (const element of found) element.classList.add("hit");
    found[0]?.scrollIntoView({ block: "center" });
  }

  /** Change what is shown; the address says it, so that it can be kept and sent. */
  function go(changes) {
    Object.assign(state, { hit: null }, changes);
    const other = state.other === null ? "" : `&other=${state.other}`;
    history.replaceState(null, "", `#step=${state.step}&group=${state.group}${other}`);
    draw();
  }

  function sortBy(name, down) {
    go({ sort: name, down });
  }

  function move(by) {
    const place = Math.max(0, Math.min(steps.length - 1, places.get(state.step) + by));
    go({ step: steps[place].step });
  }

  function readAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const wanted = (name) => (/^\d{1,12}$/.test(asked.get(name) ?? "") ? Number(asked.get(name)) : null);
    state.step = steps[nearest(wanted("step") ?? steps[0].step)].step;
    state.group = wanted("group") ?? 0;
    state.other = wanted("other") === null ? null : steps[nearest(wanted("other"))].step;
  }

  function listen() {
    at("back").onclick = () => move(-1);
    at("forward").onclick = () => move(1);
    at("step").onchange = () => go({ step: steps[nearest(Number(at("step").value))].step });
    at("slider").oninput = () => go({ step: steps[Number(at("slider").value)].step });
    at("curve").onclick = (event) => {
      const box = at("curve").getBoundingClientRect();
      const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      go({ step: steps[Math.round(share * (steps.length - 1))].step });
    };
    at("curve-of").onchange = () => {
      state.curve = at("curve-of").value;
      drawCurve();
      drawSteps();
    };
    at("other").onchange = () => {
      const text = at("other").value;
      go({ other: text === "" ? null : steps[nearest(Number(text))].step });
    };
    at("sort").onchange = () => sortBy(at("sort").value, at("sort").value !== "rank");
    at("turn").onclick = () => sortBy(state.sort, !state.down);
    at("numbers").onchange = () => at("tree").firstChild.classList.toggle("plain", !at("numbers").checked);
    at("outcome").onchange = () => (at("clear").hidden ? null : search(), go({}));
    at("search").onsubmit = (event) => (event.preventDefault(), search());
    at("clear").onclick = closeSearch;
    window.onhashchange = () => (readAddress(), draw());
    document.onkeydown = (event) => {
      const typing = event.target.closest("input, select, textarea, .scroll");
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "ArrowLeft") move(-1);
      if (event.key === "ArrowRight") move(1);
    };
  }

  document.title = `${index.run} · bgrpo`;
  at("run").textContent = index.run;
  at("facts").textContent = Object.entries(index.facts).map(([name, value]) => `${name} ${value}`).join(" · ");
  at("notes").append(...index.notes.map((note) => make("p", { className: "note" }, note)));
  if (!steps.length) return;
  document.querySelector("main").hidden = false;
  at("outcome").append(...index.outcomes.map((outcome) => make("option", { value: outcome }, outcome)));
  at("slider").max = steps.length - 1;
  const curves = [...new Set([index.curve, "reward", ...steps.flatMap((entry) => Object.keys(entry.metrics))])];
  at("curve-of").append(...curves.map((name) => make("option", { value: name }, name.replaceAll("_", " "))));
  drawCurve();
  listen();
  readAddress();
  draw();
})();
