/* Several feature sets: differences, and the queries that only one of two gets right. */

function startComparisons() {
  const all = data.comparisons;
  if (!all.length) return;
  const nameOf = (view) => data.views[view].name;
  const hasAccuracies = all.some((each) => each.difference);
  const number = (title, value, text) => ({ title, isNumber: true, value: (row) => value(row), text: (row) => (value(row) === undefined ? "–" : text(row)) });
  const columns = [
    { title: "first", text: (row) => nameOf(row.first) },
    { title: "second", text: (row) => nameOf(row.second) },
    ...(hasAccuracies ? [
      number("first (%)", (row) => row.top1?.[0], (row) => (100 * row.top1[0]).toFixed(2)),
      number("second (%)", (row) => row.top1?.[1], (row) => (100 * row.top1[1]).toFixed(2)),
      number("difference", (row) => row.difference?.value, differenceCell),
      number("p", (row) => row.difference?.p_value, (row) => pValue(row.difference.p_value)),
      number("only first", (row) => row.difference?.only_first, (row) => counted(row.difference.only_first)),
      number("only second", (row) => row.difference?.only_second, (row) => counted(row.difference.only_second)),
    ] : []),
    number("shared", (row) => row.overlap?.value, overlapCell),
  ];
  fillTable(byId("comparison-table"), columns, all);
  const scored = all.filter((each) => each.difference);
  byId("flips").hidden = !scored.length;
  const choice = byId("comparison-pair");
  choice.append(...scored.map((each, at) => element("option", { value: at, text: `${nameOf(each.first)} and ${nameOf(each.second)}${each.best ? " (best of each)" : ""}` })));
  const show = () => showFlips(scored[Number(choice.value)]);
  choice.addEventListener("change", show);
  if (scored.length) show();
}

function differenceCell(row) {
  const { value, low, high } = row.difference;
  const signed = (share) => `${share > 0 ? "+" : share < 0 ? "−" : ""}${Math.abs(100 * share).toFixed(2)}`;
  return element("span", { class: "strong" }, signed(value), element("span", { class: "interval", text: `${signed(low)} to ${signed(high)}` }));
}

const pValue = (p) => (p < 0.0001 ? "< 0.0001" : p.toFixed(4));

function overlapCell(row) {
  const { value, k, chance } = row.overlap;
  return element("span", { title: `of the ${k} nearest; ${percent(chance, 2)} by chance` }, percent(value), element("span", { class: "interval", text: `of ${k}` }));
}

function showFlips(comparison) {
  const { first, second, difference } = comparison;
  const show = (id, list, count, right) => {
    byId(`${id}-title`).textContent = `Only ${data.views[right].name} is right: ${counted(count)}${list.length < count ? `, ${list.length} of them shown` : ""}`;
    byId(id).replaceChildren(...list.map(([place, ours, theirs]) => {
      const wrong = right === first ? theirs : ours;
      return element("li", {}, card(place, [
        element("span", { class: "card-name" }, element("span", { class: "right", text: `✓ ${classOfPlace(place)}` }), element("br"), element("span", { class: "wrong", text: `✗ ${className(wrong)}` })),
      ]));
    }));
  };
  show("only-first", comparison.onlyFirst, difference.only_first, first);
  show("only-second", comparison.onlySecond, difference.only_second, second);
}
