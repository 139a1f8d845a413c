"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("rows").textContent);
  const [example, kind, description, place] = ["example", "kind", "token-description", "row"].map((id) => document.getElementById(id));
  const TRUNK = 0;
  const SIDES = ["predicted", "target"];
  let run, row, buttons, here;

  // The one rule of attention, and the sliding window, which slides over positions (docs/architecture.md).
  const inWindow = (q, k) => kind.value !== "sliding_attention" || row.position[q] - row.position[k] < run.window;
  const ownPast = (q, k) => row.branch[q] === row.branch[k] && k <= q;
  const prefix = (q, k) => row.branch[k] === TRUNK && k < row.prefix[q];
  const sees = (q, k) => (ownPast(q, k) || prefix(q, k)) && inWindow(q, k);

  const visible = (text) => text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/^ +| +$/g, (gap) => "\u00b7".repeat(gap.length)) || "\u2205";
  const element = (name, properties) => Object.assign(document.createElement(name), properties);
  const regionOf = (index) => row.regions.find(([, start, stop]) => start <= index && index < stop);
  const named = (pair) => (row.pairs.every((each) => each.objective === pair.objective) ? "" : `${pair.objective}, `) + `step ${pair.step}`;
  const listed = (names) => names.join(", ");

  function seenIn([name, start, stop], q) {
    const places = [...Array(stop - start).keys()].map((offset) => start + offset);
    const count = places.filter((k) => sees(q, k)).length;
    if (!count) return [];
    if (start <= q && q < stop) return [count === 1 ? "itself" : `${name} from token ${places.find((k) => sees(q, k))} to itself`];
    return [count === places.length ? name : `${count} of ${places.length} tokens of ${name}`];
  }

  const viewsOf = (side, pairs) => (pairs.length ? [`the ${side} embedding${pairs.length > 1 ? "s" : ""} of ${listed(pairs.map(named))}`] : []);

  function feeds(q) {
    const within = (side, rule) => viewsOf(side, row.pairs.filter((pair) => rule(pair[side])));
    const read = SIDES.flatMap((side) => within(side, (places) => places.includes(q)));
    const seen = SIDES.flatMap((side) => within(side, (places) => !places.includes(q) && places.some((reader) => sees(reader, q))));
    const parts = [read.length ? `is where ${listed(read)} is read` : "", seen.length ? `feeds ${listed(seen)}` : ""];
    return `It ${parts.filter(Boolean).join("; it ") || "feeds no embedding"}.`;
  }

  function show(q) {
    here = q;
    buttons.forEach((button, k) => {
      button.dataset.seen = sees(q, k);
      button.dataset.here = k === q;
      button.tabIndex = k === q ? 0 : -1;
    });
    const labelled = row.labelled[q] ? " The language model learns to write it." : "";
    description.textContent = `Token ${q} "${visible(row.tokens[q])}", ${regionOf(q)[0]}, position ${row.position[q]}. ` +
      `Sees ${listed(row.regions.flatMap((region) => seenIn(region, q)))}. ${feeds(q)}${labelled}`;
  }

  function token(index) {
    const text = visible(row.tokens[index]);
    const button = element("button", { type: "button", className: "token", textContent: text, tabIndex: -1 });
    button.setAttribute("aria-label", `token ${index} ${text}`);
    const side = SIDES.find((side) => row.pairs.some((pair) => pair[side].includes(index)));
    if (side) button.dataset.reads = side;
    // Not pointerenter: it also comes when the arrow keys scroll the row under a pointer at rest.
    ["focus", "click", "pointermove"].forEach((event) => button.addEventListener(event, () => index === here || show(index)));
    return button;
  }

  function part([name, start, stop]) {
    const number = name.match(/\d+$/);
    const line = element("div", { className: "part" });
    if (row.branch[start] !== TRUNK) line.classList.add("branch");
    if (number) line.classList.add(`step-${number[0] % 6}`);
    const tokens = element("div", { className: "tokens" });
    tokens.append(...buttons.slice(start, stop));
    line.append(element("span", { textContent: name }), tokens);
    return line;
  }

  function choose() {
    const [which, number] = example.value.split(" ").map(Number);
    if (run !== runs[which]) {
      run = runs[which];
      kind.replaceChildren(...run.kinds.map((name) => element("option", { value: name, textContent: name.replace("_", " ") })));
      document.getElementById("kinds").hidden = run.kinds.length < 2;
    }
    row = run.rows[number];
    buttons = row.tokens.map((_, index) => token(index));
    place.replaceChildren(...row.regions.map(part));
    show(row.pairs.length ? row.pairs[0].predicted[0] : 0);
  }

  function target(key) {
    const starts = row.regions.map(([, start]) => start);
    const own = starts.indexOf(regionOf(here)[1]);
    return { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: buttons.length - 1, ArrowUp: starts[own - 1], ArrowDown: starts[own + 1] }[key];
  }

  place.addEventListener("keydown", (event) => {
    const next = buttons[target(event.key)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  example.addEventListener("change", choose);
  kind.addEventListener("change", () => show(here));
  runs.forEach(({ run: name, rows }, which) => {
    const options = rows.map((each, number) => {
      const question = each.regions.find(([region]) => region === "question") || [null, 0, 40];
      const text = each.tokens.slice(question[1], question[2]).join("").slice(0, 60);
      return element("option", { value: `${which} ${number}`, textContent: `${number}: ${text}` });
    });
    const group = element("optgroup", { label: name });
    group.append(...options);
    example.append(...(runs.length > 1 ? [group] : options));
  });
  choose();
})();
