/* Queries with their neighbours. The vote is counted here, for any k and temperature, as Python counts it (vote.js). */

const viewer = { shown: [], selected: 0, k: null, temperature: null };

function startNeighbours() {
  if (!data.neighbours) return;
  for (const view of data.neighbours.views) {
    view.labels = numbers(view.labels, Int32Array);
    view.similarities = numbers(view.similarities, Float64Array);
  }
  fillChoices();
  byId("query-search").addEventListener("input", showQueries);
  byId("query-group").addEventListener("change", showQueries);
  byId("query-class")?.addEventListener("change", showQueries);
  byId("vote-k")?.addEventListener("change", (event) => setVote({ k: Number(event.target.value) }));
  byId("vote-t")?.addEventListener("change", (event) => setVote({ temperature: Number(event.target.value) }));
  byId("query-list").addEventListener("keydown", moveByKey);
  onView(() => {
    fillVoteChoices();
    showQueries();
  });
}

function fillChoices() {
  const { groups, queries, total, split } = data.neighbours;
  const option = (value, text) => element("option", { value, text });
  byId("query-group").append(option("", `all ${counted(queries.length)}`), ...Object.entries(groups).map(([key, text]) => option(key, text)));
  const labels = [...new Set(queries.map((query) => query.label))].sort((a, b) => a - b);
  byId("query-class")?.append(option("", "all"), ...labels.map((label) => option(label, className(label))));
  const code = (text) => element("code", { text });
  const more = [" More of them are shown with ", code("--queries N"), " or ", code("--query PATH"), "."];
  byId("neighbours-note").append(
    `${counted(queries.length)} of the ${counted(total)} images of ${split}, each with its nearest images of train.`,
    ...(queries.length < total ? more : []),
  );
}

/* k and temperatures that can be chosen in this view; what was chosen stays, where it can. */
function fillVoteChoices() {
  const [view, lists] = [data.views[state.view], data.neighbours.views[state.view]];
  if (!byId("vote-k")) return;
  const ks = view.ks.filter((k) => k <= lists.length);
  viewer.k = ks.includes(viewer.k) ? viewer.k : view.k;
  byId("vote-k").replaceChildren(...ks.map((k) => element("option", { value: k, text: k, selected: k === viewer.k })));
  const hasTemperature = view.vote === "exponential";
  byId("vote-t-field").hidden = !hasTemperature;
  if (!hasTemperature) return;
  viewer.temperature = view.temperatures.includes(viewer.temperature) ? viewer.temperature : view.temperature;
  byId("vote-t").replaceChildren(
    ...view.temperatures.map((t) => element("option", { value: t, text: t, selected: t === viewer.temperature })),
  );
}

function setVote(setting) {
  Object.assign(viewer, setting);
  showQueries();
}

/* The vote of one query in one view; null without labels. */
function voteOf(query, of = state.view) {
  const [view, lists] = [data.views[of], data.neighbours.views[of]];
  if (!data.byClass.length) return null;
  const start = query * lists.length;
  const k = Math.min(viewer.k ?? view.k, lists.length);
  const part = (array) => array.subarray(start, start + lists.length);
  return countVotes(part(lists.labels), part(lists.similarities), k, view.vote, viewer.temperature ?? view.temperature);
}

function showQueries() {
  const [group, label, text] = ["query-group", "query-class", "query-search"].map((id) => byId(id)?.value ?? "");
  const wanted = text.trim().toLowerCase();
  viewer.shown = data.neighbours.queries
    .map((query, at) => ({ ...query, at }))
    .filter((query) => (!group || query.group === group) && (label === "" || query.label === Number(label)))
    .filter((query) => !wanted || pathOf(query.place).toLowerCase().includes(wanted));
  if (!viewer.shown.some((query) => query.at === viewer.selected)) viewer.selected = viewer.shown[0]?.at ?? -1;
  const list = byId("query-list");
  list.replaceChildren(...viewer.shown.map(queryItem));
  if (!viewer.shown.length) list.append(element("p", { class: "empty", text: "No query here has such a path." }));
  select(viewer.selected, { scroll: false });
}

function queryItem(query) {
  const vote = voteOf(query.at);
  const isRight = vote && vote[0].label === query.label;
  const predicted = vote ? element("span", { class: isRight ? "right" : "wrong", text: `${isRight ? "✓" : "✗"} ${className(vote[0].label)}` }) : null;
  const item = element(
    "div",
    { class: "query-item", role: "option", id: `query-${query.at}`, "aria-selected": "false" },
    element("div", { class: "frame" }, pictureOf(query.place)),
    element("span", { class: "query-text" }, element("b", { text: query.label < 0 ? fileNameOf(query.place) : className(query.label) }), predicted),
  );
  item.addEventListener("click", () => select(query.at));
  return item;
}

function select(at, { scroll = true } = {}) {
  viewer.selected = at;
  const list = byId("query-list");
  for (const item of list.querySelectorAll("[role=option]")) item.setAttribute("aria-selected", item.id === `query-${at}`);
  const item = byId(`query-${at}`);
  if (item) list.setAttribute("aria-activedescendant", item.id);
  else list.removeAttribute("aria-activedescendant");
  if (item && scroll) item.scrollIntoView({ block: "nearest", inline: "nearest" });
  const query = viewer.shown.find((each) => each.at === at);
  byId("query-detail").replaceChildren(...(query ? queryDetail(query) : []));
}

function moveByKey(event) {
  const places = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  const now = viewer.shown.findIndex((query) => query.at === viewer.selected);
  const to = event.key in places ? now + places[event.key] : { Home: 0, End: viewer.shown.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const query = viewer.shown[Math.max(0, Math.min(viewer.shown.length - 1, to))];
  if (query) select(query.at);
}

function queryDetail(query) {
  const vote = voteOf(query.at);
  const head = element(
    "div",
    { class: "query-head" },
    element("div", { class: "frame large" }, pictureOf(query.place, { alt: `Query: ${fileNameOf(query.place)}` })),
    element("div", { class: "query-facts" },
      element("p", { class: "query-path", text: pathOf(query.place) }),
      query.label < 0 ? null : element("p", {}, "True class ", element("b", { text: className(query.label) })),
      vote ? votes(query, vote) : null),
    vote && data.views.length > 1 ? everyView(query) : null,
  );
  const k = viewer.k ?? data.views[state.view].k;
  const voting = vote && k < data.neighbours.shown ? `, of which the first ${k} vote` : "";
  return [head, element("h3", { text: `Nearest in ${data.views[state.view].name}${voting}` }), nearest(query)];
}

/* The classes with the most votes, as bars. */
function votes(query, vote) {
  const rows = vote.slice(0, 5).map((each) => {
    const bar = element("span", { class: "share", "aria-hidden": "true" }, element("i"));
    bar.firstChild.style.width = percent(each.share);
    const mark = each.label === query.label ? "right" : null;
    return element("tr", { class: mark }, element("th", { scope: "row", text: `${className(each.label)}${mark ? " ✓" : ""}` }),
      element("td", { class: "num" }, percent(each.share), bar));
  });
  const rest = vote.length > 5 ? element("caption", { text: `and ${counted(vote.length - 5)} more classes` }) : null;
  return element("table", { class: "votes", "aria-label": "Votes by class" }, rest, element("tbody", {}, ...rows));
}

function everyView(query) {
  const rows = data.views.map((view, of) => {
    const [first] = voteOf(query.at, of);
    const isRight = first.label === query.label;
    return element("tr", { class: of === state.view ? "current" : null }, element("th", { scope: "row", text: view.name }),
      element("td", { class: isRight ? "right" : "wrong", text: `${isRight ? "✓" : "✗"} ${className(first.label)}` }));
  });
  return element("table", { class: "every-view", "aria-label": "Prediction of each layer" }, element("tbody", {}, ...rows));
}

function nearest(query) {
  const lists = data.neighbours.views[state.view];
  const start = query.at * lists.length;
  const k = viewer.k ?? data.views[state.view].k;
  const cards = lists.places[query.at].map((place, at) => {
    const label = lists.labels[start + at];
    const isRight = label >= 0 && label === query.label;
    const mark = label < 0 || query.label < 0 ? null : isRight ? "is-right" : "is-wrong";
    const name = label < 0 ? fileNameOf(place) : `${mark ? (isRight ? "✓ " : "✗ ") : ""}${className(label)}`;
    const made = card(place, [
      element("span", { class: "card-name", text: name }),
      element("span", { class: "card-number", text: lists.similarities[start + at].toFixed(3) }),
    ], { mark: [mark, data.byClass.length && at >= k ? "no-vote" : null].filter(Boolean).join(" ") });
    return element("li", {}, made);
  });
  return element("ol", { class: "cards" }, ...cards);
}
