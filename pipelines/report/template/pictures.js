/* Thumbnails; each is in the file once, however often it is shown. */

function pictureOf(place, { alt = "" } = {}) {
  const of = data.pictures;
  const number = of.picture[place];
  if (number < 0) return element("span", { class: "no-picture", role: alt ? "img" : null, "aria-label": alt || null });
  const made = element("img", { src: of.thumbnails[number], alt, loading: "lazy", decoding: "async", draggable: "false" });
  return made;
}

const pathOf = (place) => data.pictures.path[place];
const fileNameOf = (place) => pathOf(place).split("/").pop();

/* A picture with what is known about it. `facts` are short texts below it. */
function card(place, facts, { mark = null } = {}) {
  const alt = fileNameOf(place);
  return element(
    "figure",
    { class: ["card", mark].filter(Boolean).join(" "), title: pathOf(place) },
    element("div", { class: "frame" }, pictureOf(place, { alt })),
    element("figcaption", {}, ...facts),
    data.pictures.thumbnails.length ? null : element("span", { class: "card-file", text: fileNameOf(place) }),
  );
}

const classOfPlace = (place) => className(data.pictures.label[place]);
