"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const trail = document.getElementById("trail");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let level = "";
  let wanted = "";

  // Names come from models and files: they are looked up in maps and put into the page as text.
  for (const chart of charts) {
    chart.places = new Map();
    chart.names.forEach((name, place) => {
      if (!chart.places.has(name)) chart.places.set(name, place);
    });
    chart.children = chart.names.map(() => []);
    chart.parents.forEach((parent, place) => { if (parent >= 0) chart.children[parent].push(place); });
  }

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const narrow = () => innerWidth < 640;
  const deepest = () => (narrow() ? 3 : 4);
  const most = 600;

  // What plotly gets: the part that is zoomed to and the largest below it, as deep as can be read.
  // It slows down with the number of parts, drawn or not, and a model may have thousands.
  function visible(chart) {
    const top = chart.places.get(level) ?? 0;
    let found = [{ place: top, depth: 0, holds: false }];
    for (let next = 0; next < found.length; next += 1) {
      const part = found[next];
      for (const below of chart.children[part.place]) {
        // At the top, a part that is nearly all of what holds it is no level that shows anything.
        const all = !part.depth && chart.sizes[below] > 0.9 * chart.sizes[part.place];
        const depth = part.depth + (all ? 0 : 1);
        if (depth >= deepest()) continue;
        found.push({ place: below, depth, holds: false });
        part.holds = true;
      }
    }
    // What would be specks on a phone is left for a tap.
    const last = Math.max(...found.map(({ depth }) => depth));
    if (narrow() && last > 1 && found.length > 80) {
      found = found.filter(({ depth }) => depth < last);
      for (const part of found) part.holds &&= part.depth < last - 1;
    }
    // A part is as large as anything below it and comes before it: none is kept without what
    // holds it.
    found.sort((one, other) => chart.sizes[other.place] - chart.sizes[one.place]);
    return { shown: found.slice(0, most), cut: Math.max(found.length - most, 0) };
  }

  function mixed(first, second, share) {
    const read = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const [from, to] = [read(first), read(second)];
    return `rgb(${from.map((value, n) => Math.round(value + (to[n] - value) * share)).join(",")})`;
  }

  function colours(chart, shown) {
    const shades = new Map();
    const read = (shade) => {
      if (!shades.has(shade)) shades.set(shade, [style(`--${shade}`), style(`--${shade}-ink`)]);
      return shades.get(shade);
    };
    const [surface, ink, mark, line, muted] =
      ["--surface", "--ink", "--mark", "--line", "--muted"].map(style);
    const lit = matching(chart);
    const paint = ({ place, holds }) => {
      const [fill, on] = read(chart.shades[place]);
      if (lit !== null && !lit.has(place)) return [line, muted];
      // What holds others that are drawn within it stands back.
      return holds ? [mixed(surface, fill, 0.22), ink] : [fill, on];
    };
    const marks = shown.map(({ place }) => chart.marks[place]);
    const edge = (given) =>
      given.includes("changed") ? mark : given.includes("head") ? ink : surface;
    return {
      fill: shown.map((part) => paint(part)[0]),
      ink: shown.map((part) => paint(part)[1]),
      line: marks.map(edge),
      width: marks.map((given) => (given.length ? 2.5 : 1)),
    };
  }

  // What a search lights up: every part that matches, what lies in it, and what holds it.
  function matching(chart) {
    if (!wanted) return null;
    const lit = new Set();
    const named = chart.names.map((name) => name.toLowerCase().includes(wanted));
    chart.names.forEach((_, place) => {
      for (let above = place; above >= 0; above = chart.parents[above]) {
        if (named[above]) { lit.add(place); break; }
      }
    });
    for (const place of [...lit]) {
      for (let above = chart.parents[place]; above >= 0; above = chart.parents[above]) lit.add(above);
    }
    return lit;
  }

  function draw(chart) {
    const plot = document.getElementById(`plot-${chart.key}`);
    const { shown, cut } = visible(chart);
    plot.parentNode.querySelector(".cut").textContent =
      cut ? `${cut.toLocaleString("en")} smaller parts are not drawn here: zoom in` : "";
    // The number above a chart is that of what is shown.
    const whole = shown[0].place === 0 ? chart.whole : chart.texts[shown[0].place];
    plot.parentNode.querySelector("figcaption span").textContent = whole;
    const of = (column) => shown.map(({ place }) => chart[column][place]);
    const { fill, ink, line, width } = colours(chart, shown);
    const trace = {
      type: "treemap",
      ids: shown.map(({ place }) => String(place)),
      parents: shown.map(({ place }, rank) => (rank ? String(chart.parents[place]) : "")),
      labels: shown.map(({ place }) =>
        (chart.marks[place].includes("head") ? "◆ " : "") + chart.labels[place]),
      values: of("sizes"),
      branchvalues: "total",
      text: of("texts"),
      texttemplate: "<b>%{label}</b><br>%{text}",
      hovertext: of("hovers"),
      hovertemplate: "%{hovertext}<extra></extra>",
      textfont: { color: ink, size: 12 },
      insidetextfont: { color: ink, size: 12 },
      outsidetextfont: { color: ink },
      marker: { colors: fill, line: { color: line, width }, pad: { t: 20, l: 3, r: 3, b: 3 }, cornerradius: 3 },
      tiling: { pad: 2, packing: "squarify" },
      pathbar: { visible: false },
    };
    const layout = {
      margin: { t: 0, l: 0, r: 0, b: 0 },
      paper_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: style("--ink") },
      hoverlabel: {
        bgcolor: style("--surface"), bordercolor: style("--line"), align: "left",
        font: { color: style("--ink"), size: 12 },
      },
      uniformtext: { minsize: 9, mode: "hide" },
    };
    const first = !plot.dataset.level;
    plot.dataset.level = chart.titles[shown[0].place];
    const drawn = Plotly.react(plot, [trace], layout, { displayModeBar: false, responsive: true });
    if (first) {
      plot.on("plotly_treemapclick", (event) => {
        go(chart, Number(event.points[0].id));
        return false;
      });
    }
    return drawn;
  }

  // A click goes into a part; on the part that is shown already, out of it; on one that holds
  // nothing smaller, to what holds it.
  function go(chart, place) {
    if (!chart.children[place].length) place = chart.parents[place];
    if (chart.names[place] === level) place = chart.parents[place];
    zoom(place >= 0 ? chart.names[place] : "");
  }

  function zoom(address) {
    level = address;
    charts.forEach(draw);
    walk();
  }

  // The way from the whole model to what is shown, as buttons.
  function walk() {
    trail.replaceChildren();
    const chart = charts.find((each) => each.places.has(level)) ?? charts[0];
    const way = [];
    for (let place = chart.places.get(level) ?? 0; place >= 0; place = chart.parents[place]) way.unshift(place);
    if (way.length === 1) {
      const hint = matchMedia("(pointer: coarse)").matches ? "Tap" : "Click";
      trail.append(Object.assign(document.createElement("span"), {
        className: "hint", textContent: `${hint} a part to see what is in it`,
      }));
      return;
    }
    way.forEach((place, step) => {
      if (step) trail.append(Object.assign(document.createElement("i"), { textContent: "›" }));
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = chart.titles[place];
      if (step === way.length - 1) button.setAttribute("aria-current", "location");
      else button.addEventListener("click", () => zoom(chart.names[place]));
      trail.append(button);
    });
  }

  const rows = [...document.querySelectorAll("tbody tr")].map((row) => ({
    row,
    level: Number(row.dataset.level),
    tree: row.closest("table").classList.contains("tree"),
    text: `${row.textContent} ${row.dataset.address}`.toLowerCase(),
    folded: false,
  }));

  // A tree folds: a row with rows below it has a button, and what lies deep is folded at first.
  function fold() {
    const crowded = rows.filter((each) => each.tree).length > 40;
    rows.forEach((each, place) => {
      const next = rows[place + 1];
      const parent = each.tree && next?.tree && next.level > each.level &&
        next.row.parentNode === each.row.parentNode;
      if (!parent) return;
      each.folded = crowded && each.level >= 1;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "fold";
      button.setAttribute("aria-label", `Below ${each.row.dataset.address || "the model"}`);
      button.addEventListener("click", () => { each.folded = !each.folded; show(); });
      each.button = button;
      each.row.firstElementChild.prepend(button);
    });
  }

  const many = Number(document.body.dataset.many);
  const whole = new Set();
  const buttons = new Map();
  for (const body of document.querySelectorAll("tbody")) {
    if (body.rows.length <= many) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "rest";
    button.addEventListener("click", () => { whole.add(body); show(); });
    body.closest(".scroll").after(button);
    buttons.set(body, button);
  }

  function show() {
    let hits = 0;
    let closed = Infinity;
    let body = null;
    let number = 0;
    const more = new Map();
    for (const each of rows) {
      if (each.row.parentNode !== body) {
        body = each.row.parentNode;
        closed = Infinity;
        number = 0;
      }
      if (each.tree && each.level <= closed) closed = Infinity;
      const hit = wanted !== "" && each.text.includes(wanted);
      hits += hit;
      each.row.classList.toggle("found", hit);
      const wants = wanted ? hit : !(each.tree && each.level > closed);
      number += wants;
      // A browser takes its time over thousands of rows: they come when they are asked for.
      const late = wants && number > many && !whole.has(body);
      if (late) more.set(body, number);
      each.row.hidden = !wants || late;
      each.button?.setAttribute("aria-expanded", String(wanted !== "" || !each.folded));
      if (each.tree && each.folded && closed === Infinity) closed = each.level;
    }
    for (const [rest, button] of buttons) {
      button.hidden = !more.has(rest);
      button.textContent = `Show all ${(more.get(rest) ?? 0).toLocaleString("en")} rows`;
    }
    for (const section of document.querySelectorAll("details.section")) {
      const any = section.querySelector("tbody tr:not([hidden])") !== null;
      section.hidden = wanted !== "" && !any;
      if (wanted && any) section.open = true;
    }
    const parts = new Set(charts.flatMap((chart) =>
      chart.names.filter((name) => name.toLowerCase().includes(wanted))));
    const counts = [[hits, "row"], ...(charts.length ? [[parts.size, "part"]] : [])];
    found.textContent = !wanted ? "" : counts.map(([count, noun]) =>
      `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`).join(", ");
  }

  let pending = 0;
  search.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      wanted = search.value.trim().toLowerCase();
      show();
      charts.forEach(draw);
    }, 80);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      search.dispatchEvent(new Event("input"));
    }
  });

  // Rows that are about a part lead to it, for whoever uses no pointer.
  function link() {
    for (const { row } of rows) {
      const address = row.dataset.address;
      const chart = charts.find((each) => each.places.has(address));
      const name = row.querySelector(".name span");
      if (!chart || !name || name.textContent.includes("\n")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "zoom";
      button.title = "Show in the chart";
      button.textContent = name.textContent;
      button.addEventListener("click", () => {
        const place = chart.places.get(address);
        zoom(chart.children[place].length ? address : chart.names[Math.max(chart.parents[place], 0)]);
        document.getElementById("section-charts").scrollIntoView({ block: "start" });
      });
      name.replaceChildren(button);
    }
  }

  if (charts.length) {
    link();
    zoom("");
    dark.addEventListener("change", () => charts.forEach(draw));
  }
  fold();
  show();
  document.documentElement.dataset.ready = "true";
})();
