/* Charts, drawn by Vega-Lite when they come near the window; and the tables behind them. */

function rowsOf(table) {
  const names = Object.keys(table);
  const columns = names.map((name) =>
    Array.isArray(table[name]) ? table[name] : table[name].codes.map((code) => table[name].values[code]),
  );
  return (columns[0] ?? []).map((_, at) => Object.fromEntries(names.map((name, of) => [name, columns[of][at]])));
}

class Drawing {
  constructor(figure, charts) {
    this.figure = figure;
    this.charts = charts;
    this.place = figure.querySelector(".chart-drawing");
    this.chosen = charts[0].options[0] ?? null;
    this.isNear = false;
    this.turn = 0;
    if (charts[0].switch && charts[0].switch !== "view") this.addControl(charts[0].switchTitle, charts[0].options, (each) => (this.chosen = each));
    this.colour = Object.keys(charts[0].colours)[0];
    if (Object.keys(charts[0].colours).length > 1) this.addControl("Colour by", Object.keys(charts[0].colours), (each) => (this.colour = each));
    const details = figure.querySelector(".chart-data");
    details.addEventListener("toggle", () => details.open && this.fillTable());
    document.addEventListener("themechange", () => this.draw());
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      this.isNear = true;
      this.draw();
    }, { rootMargin: "600px" }).observe(figure);
  }

  get chart() {
    return this.charts[Math.min(this.charts.length - 1, this.charts.length > 1 ? state.view : 0)];
  }

  get rows() {
    const chart = this.chart;
    chart.rows ??= rowsOf(chart.table);
    const wanted = chart.switch === "view" ? data.views[state.view].name : this.chosen;
    return chart.switch ? chart.rows.filter((row) => [wanted, "none"].includes(String(row[chart.switch]))) : chart.rows;
  }

  addControl(title, options, choose) {
    const select = element("select", {}, ...options.map((each) => element("option", { value: each, text: each })));
    select.addEventListener("change", () => {
      choose(select.value);
      this.draw();
    });
    this.figure.querySelector(".chart-controls").append(element("label", { class: "field" }, title, select));
  }

  async draw() {
    if (!this.isNear) return;
    const turn = ++this.turn;
    const [chart, rows] = [this.chart, this.rows];
    const place = element("div", { class: "drawing", role: "img", "aria-label": this.label() });
    this.place.style.minHeight = `${this.place.offsetHeight}px`;
    this.place.append(place);
    if (this.colour) chart.spec.encoding.color = chart.colours[this.colour];
    const spec = { ...coloured(chart.spec), data: { name: "table", values: rows.map((row) => ({ ...row })) } };
    const result = await vegaEmbed(place, spec, {
      ast: true, actions: false, renderer: rows.length > 600 ? "canvas" : "svg", config: data.themes[themeName()],
      tooltip: showHover,
    });
    if (turn !== this.turn) {
      result.finalize();
      place.remove();
      return;
    }
    this.drawn?.finalize();
    this.drawn = result;
    this.place.replaceChildren(place);
    this.place.style.minHeight = "";
    if (this.figure.querySelector(".chart-data").open) this.fillTable();
  }

  label() {
    const title = this.figure.querySelector(".chart-title").textContent;
    return `${title}. ${this.figure.querySelector(".chart-note").textContent} The data are in the table below.`;
  }

  fillTable() {
    const details = this.figure.querySelector(".chart-data");
    const [chart, rows] = [this.chart, this.rows];
    const columns = chart.columns.map((each) => ({
      title: each.title, isNumber: each.digits !== null || rows.some((row) => typeof row[each.key] === "number"),
      text: (row) => (each.digits === null || row[each.key] === null ? String(row[each.key]) : row[each.key].toFixed(each.digits)),
      value: (row) => row[each.key],
    }));
    const table = element("table");
    fillTable(table, columns, rows.slice(0, 2000));
    const note = rows.length > 2000 ? element("p", { class: "section-note", text: `The first 2,000 of ${counted(rows.length)} rows.` }) : null;
    const scroll = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Data of: ${chart.title}` }, table);
    for (const old of [...details.children].slice(1)) old.remove();
    details.append(...[note, scroll].filter(Boolean));
  }
}

/* A copy of a specification, with brighter colours on dark ground. */
function coloured(spec) {
  let text = JSON.stringify(spec);
  if (themeName() === "dark") for (const [colour, brighter] of Object.entries(data.onDark)) text = text.replaceAll(colour, brighter);
  return JSON.parse(text);
}

function showHover(handler, event, item, value) {
  const hover = byId("hover");
  hover.hidden = value === null || value === undefined || value === "";
  if (hover.hidden) return;
  const facts = typeof value === "object" ? Object.entries(value) : [["", value]];
  const place = item?.datum?.place;
  const picture = place === undefined || data.pictures.picture[place] < 0 ? null : pictureOf(place);
  if (place !== undefined) facts.push(["", pathOf(place)]);
  const list = element("dl");
  for (const [name, text] of facts) {
    list.append(...(name ? [element("dt", { text: name })] : []), element("dd", { text: String(text), class: name ? null : "whole" }));
  }
  hover.replaceChildren(...[picture, list].filter(Boolean));
  const x = Math.min(event.clientX + 14, window.innerWidth - hover.offsetWidth - 8);
  const y = Math.min(event.clientY + 14, window.innerHeight - hover.offsetHeight - 8);
  hover.style.left = `${Math.max(8, x)}px`;
  hover.style.top = `${Math.max(8, y)}px`;
}

function startCharts() {
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const charts = data.charts.filter((each) => each.key === figure.dataset.chart);
    if (!charts.length) continue;
    const drawing = new Drawing(figure, charts);
    if (charts.length > 1 || charts[0].switch === "view") state.listeners.push(() => drawing.draw());
  }
}
