/* Clusters, hubs and near-duplicates. */

function startClusters() {
  if (!data.clusterings.length) return;
  const choice = byId("clustering");
  onView(() => {
    let ours = data.clusterings.map((each, at) => ({ ...each, at })).filter((each) => sameLayer(each.view, state.view));
    if (!ours.length) ours = data.clusterings.map((each, at) => ({ ...each, at, name: `${each.name} of ${data.views[each.view].name}` }));
    choice.replaceChildren(...ours.map((each) => element("option", { value: each.at, text: each.name })));
    showClustering();
  });
  choice.addEventListener("change", showClustering);
  byId("cluster-order").addEventListener("change", showClustering);
}

const sameLayer = (a, b) => data.views[a].layer === data.views[b].layer && data.views[a].set === data.views[b].set;

function showClustering() {
  const clustering = data.clusterings[Number(byId("clustering").value)];
  const order = byId("cluster-order").value;
  const clusters = [...clustering.clusters];
  if (order !== "size") clusters.sort((a, b) => (order === "pure" ? -1 : 1) * ((a.purity ?? 0) - (b.purity ?? 0)));
  byId("cluster-metrics").replaceChildren(...[clusterMetrics(clustering.metrics)].filter(Boolean));
  byId("cluster-list").replaceChildren(...clusters.map(clusterItem));
  if (clustering.count > clusters.length) {
    byId("cluster-list").append(element("p", { class: "section-note", text: `The largest ${clusters.length} of ${counted(clustering.count)} clusters.` }));
  }
}

/* Recorded numbers as a table: a row for each split. */
function clusterMetrics(metrics) {
  if (!metrics.length) return null;
  const titles = { nmi: "NMI", ami: "AMI", ari: "ARI", purity: "purity", hungarian: "one-to-one accuracy", many_to_one: "many-to-one accuracy" };
  const names = [...new Set(metrics.map(([, name]) => name))];
  const splits = [...new Set(metrics.map(([split]) => split))];
  const table = element("table");
  const valueOf = (split, name) => metrics.find((each) => each[0] === split && each[1] === name)?.[2];
  fillTable(table, [
    { title: "split", text: (split) => split },
    ...names.map((name) => ({
      title: titles[name] ?? name, isNumber: true, value: (split) => valueOf(split, name),
      text: (split) => (valueOf(split, name) === undefined ? "–" : valueOf(split, name).toFixed(3)),
    })),
  ], splits);
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "How well the clusters match the classes" }, table);
}

function clusterItem(cluster) {
  const [majority] = cluster.classes;
  const title = majority ? className(majority[0]) : `Cluster ${cluster.number}`;
  const purity = cluster.purity === null ? null : element("span", { class: "cluster-fact" }, `${percent(cluster.purity, 0)} of one class`);
  const montage = element("span", { class: "montage", "aria-hidden": "true" }, ...cluster.places.slice(0, 4).map((place) => element("span", { class: "frame" }, pictureOf(place))));
  const ofVal = cluster.val === null ? "" : `, ${counted(cluster.val)} of val`;
  const summary = element("summary", {}, montage, element("span", { class: "cluster-name", text: title }),
    element("span", { class: "cluster-fact", text: `${counted(cluster.size)} images${ofVal}` }), purity);
  const details = element("details", { class: "cluster" }, summary);
  details.addEventListener("toggle", () => details.open && details.children.length === 1 && details.append(clusterDetail(cluster)));
  return details;
}

function clusterDetail(cluster) {
  const classes = cluster.classes.map(([label, count]) =>
    element("tr", {}, element("th", { scope: "row", text: className(label) }), element("td", { class: "num", text: counted(count) })));
  const others = cluster.others ? element("caption", { text: `and ${counted(cluster.others)} more classes` }) : null;
  const table = classes.length ? element("table", { class: "votes", "aria-label": "Classes of the cluster" }, others, element("tbody", {}, ...classes)) : null;
  const cards = cluster.places.map((place) => element("li", {}, card(place, [element("span", { class: "card-name", text: imageName(place) })])));
  return element("div", { class: "cluster-detail" }, table, element("ol", { class: "cards" }, ...cards));
}

const imageName = (place) => (data.pictures.label[place] < 0 ? fileNameOf(place) : classOfPlace(place));

function startImages() {
  onView(() => {
    const { hubs, duplicates } = data.rows[state.view];
    showHubs(hubs);
    showDuplicates(duplicates);
  });
}

function showHubs(hubs) {
  byId("hub-note").textContent =
    `Images of train that are in the lists of the ${hubs.k} nearest of many queries. ${counted(hubs.hubs)} are in at least ` +
    `${counted(hubs.least)} lists and have ${percent(hubs.share)} of all places; ${percent(hubs.antihubs)} of train are in none. ` +
    `Skewness ${hubs.skewness.toFixed(2)}. Below each image is the number of lists that it is in.`;
  const cards = hubs.rows.map(([place, count]) => element("li", {}, card(place, [
    element("span", { class: "card-name", text: imageName(place) }),
    element("span", { class: "card-number", text: `${counted(count)}×`, title: `in ${count} lists` }),
  ])));
  byId("hub-list").replaceChildren(...cards);
}

function showDuplicates(duplicates) {
  const note = byId("duplicate-note");
  byId("duplicate-list").replaceChildren();
  if (!duplicates) {
    note.textContent = "Near-duplicates are found by the cosine, which this protocol does not use.";
    return;
  }
  const { count, total, threshold, pairs } = duplicates;
  note.textContent = count
    ? `${counted(count)} of ${counted(total)} queries have a cosine of at least ${threshold} with an image of train` +
      (pairs.length < count ? `; the ${pairs.length} most alike:` : ":")
    : `None: no query has a cosine of ${threshold} or more with an image of train.`;
  const fact = (place) => [element("span", { class: "card-name", text: imageName(place) })];
  byId("duplicate-list").append(...pairs.map(([query, row, cosine]) =>
    element("li", {}, card(query, fact(query)), card(row, fact(row)), element("span", { class: "card-number", text: cosine.toFixed(4) }))));
}
