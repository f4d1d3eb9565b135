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
    chart.below = chart.names.map(() => false);
    chart.parents.forEach((parent) => { if (parent >= 0) chart.below[parent] = true; });
  }

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function colours(chart) {
    const shades = new Map();
    const read = (shade) => {
      if (!shades.has(shade)) shades.set(shade, [style(`--${shade}`), style(`--${shade}-ink`)]);
      return shades.get(shade);
    };
    const plain = [style("--surface"), style("--ink"), style("--mark"), style("--line"), style("--muted")];
    const lit = matching(chart);
    const faded = (place) => lit !== null && !lit.has(place);
    const holds = containers(chart);
    const fill = (shade, place) =>
      faded(place) ? plain[3] : holds[place] ? mixed(plain[0], read(shade)[0], 0.22) : read(shade)[0];
    const ink = (shade, place) =>
      faded(place) ? plain[4] : holds[place] ? plain[1] : read(shade)[1];
    return {
      fill: chart.shades.map(fill),
      ink: chart.shades.map(ink),
      line: chart.marks.map((marks) =>
        marks.includes("changed") ? plain[2] : marks.includes("head") ? plain[1] : plain[0]),
      width: chart.marks.map((marks) => (marks.length ? 2.5 : 1)),
    };
  }

  const depth = () => (innerWidth < 640 ? 3 : 4);

  // Parts whose own parts are drawn within them: they stand back.
  function containers(chart) {
    const top = chart.places.get(level) ?? 0;
    const deep = [];
    return chart.parents.map((parent, place) => {
      deep.push(place === top ? 0 : (deep[parent] ?? -Infinity) + 1);
      return chart.below[place] && deep[place] < depth() - 1;
    });
  }

  function mixed(first, second, share) {
    const read = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const [from, to] = [read(first), read(second)];
    return `rgb(${from.map((value, n) => Math.round(value + (to[n] - value) * share)).join(",")})`;
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
    const { fill, ink, line, width } = colours(chart);
    const place = chart.places.get(level);
    const heads = chart.marks.map((marks) => (marks.includes("head") ? "◆ " : ""));
    const trace = {
      type: "treemap",
      ids: chart.names.map((_, each) => String(each)),
      parents: chart.parents.map((parent) => (parent < 0 ? "" : String(parent))),
      labels: chart.labels.map((label, each) => heads[each] + label),
      values: chart.sizes,
      branchvalues: "total",
      level: String(place ?? 0),
      maxdepth: depth(),
      text: chart.texts,
      texttemplate: "<b>%{label}</b><br>%{text}",
      hovertext: chart.hovers,
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
    plot.dataset.level = place === undefined ? "" : chart.names[place] || "(the model)";
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
    if (!chart.below[place]) place = chart.parents[place];
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
    const crowded = rows.filter((each) => each.tree).length > 60;
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

  function show() {
    let hits = 0;
    let closed = Infinity;
    let body = null;
    for (const each of rows) {
      if (each.row.parentNode !== body) { body = each.row.parentNode; closed = Infinity; }
      if (each.tree && each.level <= closed) closed = Infinity;
      const hit = wanted !== "" && each.text.includes(wanted);
      hits += hit;
      each.row.classList.toggle("found", hit);
      each.row.hidden = wanted ? !hit : each.tree && each.level > closed;
      each.button?.setAttribute("aria-expanded", String(wanted !== "" || !each.folded));
      if (each.tree && each.folded && closed === Infinity) closed = each.level;
    }
    for (const section of document.querySelectorAll("details.section")) {
      const any = section.querySelector("tbody tr:not([hidden])") !== null;
      section.hidden = wanted !== "" && !any;
      if (wanted && any) section.open = true;
    }
    found.textContent = wanted ? `${hits.toLocaleString("en")} ${hits === 1 ? "row" : "rows"}` : "";
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
        zoom(chart.below[place] ? address : chart.names[Math.max(chart.parents[place], 0)]);
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
