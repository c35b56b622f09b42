/* Accuracy of each class, and the pairs that are confused most. */

const MOST_SHOWN = 12;

function startClasses() {
  if (!data.byClass.length) return;
  let which = "worst";
  const search = byId("class-search");
  const show = () => {
    const view = data.views[state.view];
    const setting = view.temperature === null ? `k = ${view.k}` : `k = ${view.k}, T = ${view.temperature}`;
    document.querySelector("[data-setting]").textContent =
      `Top-1 accuracy of each class in ${view.name}, at ${setting}, with 95% intervals.`;
    showClasses(chosenClasses(which, search.value.trim().toLowerCase()));
    showPairs();
    const title = byId("confusion-title");
    if (title) title.textContent = `Confusion matrix of ${view.name}`;
  };
  for (const button of document.querySelectorAll("[data-classes]")) {
    button.addEventListener("click", () => {
      which = button.dataset.classes;
      for (const each of document.querySelectorAll("[data-classes]")) each.setAttribute("aria-pressed", each === button);
      show();
    });
  }
  search.addEventListener("input", show);
  onView(show);
}

function chosenClasses(which, wanted) {
  const rows = rowsOf(data.byClass[state.view]).filter((row) => !wanted || className(row.class).toLowerCase().includes(wanted));
  const rate = (row) => row.right / row.queries;
  if (which === "worst") rows.sort((a, b) => rate(a) - rate(b) || b.queries - a.queries);
  if (which === "best") rows.sort((a, b) => rate(b) - rate(a) || b.queries - a.queries);
  return which === "all" || wanted ? rows : rows.slice(0, MOST_SHOWN);
}

function showClasses(rows) {
  const rate = (row) => row.right / row.queries;
  fillTable(byId("class-table"), [
    { title: "class", text: (row) => className(row.class) },
    { title: "queries", isNumber: true, text: (row) => counted(row.queries), value: (row) => row.queries },
    { title: "top-1 (%)", isNumber: true, text: (row) => accuracyCell(row, rate(row)), value: rate },
    { title: "most confused with", text: (row) => className(row.with) },
  ], rows);
}

function accuracyCell(row, rate) {
  const bar = element("span", { class: "share", "aria-hidden": "true" }, element("i"));
  bar.firstChild.style.width = percent(rate);
  const interval = element("span", { class: "interval", text: `${row.low.toFixed(0)}–${row.high.toFixed(0)}` });
  return element("span", {}, (100 * rate).toFixed(1), interval, bar);
}

function showPairs() {
  const table = data.byClass[state.view];
  const total = new Map(table.class.map((each, at) => [each, table.queries[at]]));
  fillTable(byId("pair-table"), [
    { title: "class", text: ([actual]) => className(actual) },
    { title: "predicted as", text: ([, predicted]) => className(predicted) },
    { title: "queries", isNumber: true, text: ([, , count]) => counted(count), value: ([, , count]) => count },
    {
      title: "of class", isNumber: true, text: ([actual, , count]) => percent(count / total.get(actual), 0),
      value: ([actual, , count]) => count / total.get(actual),
    },
  ], data.pairs[state.view]);
}
