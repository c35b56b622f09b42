/* Tables that can be sorted by their headings. */

function fillTable(table, columns, rows, { sortBy = null } = {}) {
  const head = element("tr", {}, ...columns.map((each) => element("th", { scope: "col", class: each.isNumber && "num", text: each.title })));
  const body = rows.map((row) =>
    element("tr", {}, ...columns.map((each, at) => {
      const content = each.text(row);
      const cell = element(at === 0 ? "th" : "td", { class: each.isNumber && "num", scope: at === 0 ? "row" : null });
      const value = each.value?.(row);
      if (value !== null && value !== undefined) cell.dataset.value = value;
      cell.append(content);
      return cell;
    })),
  );
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  makeSortable(table);
  if (sortBy !== null) head.children[sortBy].setAttribute("aria-sort", "descending");
}

function makeSortable(table) {
  for (const [at, heading] of [...table.tHead.rows[0].cells].entries()) {
    const button = element("button", { type: "button", text: heading.textContent });
    button.addEventListener("click", () => sortTable(table, at));
    heading.replaceChildren(button);
  }
}

function sortTable(table, at) {
  const heading = table.tHead.rows[0].cells[at];
  const isNumber = heading.classList.contains("num");
  const before = heading.getAttribute("aria-sort");
  const direction = before === null ? (isNumber ? -1 : 1) : before === "ascending" ? -1 : 1;
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const key = (row) => {
    const cell = row.cells[at];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return isNumber ? (Number.isNaN(parseFloat(text)) ? -Infinity : parseFloat(text)) : text;
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => direction * (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true })));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}
