/* What all parts of the page use. Text from data is only ever set as text. */

const data = JSON.parse(document.getElementById("data").textContent);
const state = { view: data.firstView, listeners: [] };

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const counted = (number) => number.toLocaleString("en-US");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const className = (number) => (number < 0 ? "–" : data.classes[number]);
const themeName = () => document.documentElement.dataset.theme;

function onView(listener) {
  state.listeners.push(listener);
  listener();
}

function setView(view) {
  state.view = view;
  for (const listener of state.listeners) listener();
}

/* Numbers that were written as base64. */
function numbers(text, kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new kind(bytes.buffer);
}

function startTheme() {
  const wished = window.matchMedia("(prefers-color-scheme: dark)");
  const set = (name) => {
    document.documentElement.dataset.theme = name;
    document.dispatchEvent(new Event("themechange"));
  };
  set(wished.matches ? "dark" : "light");
  wished.addEventListener("change", () => set(wished.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => set(themeName() === "dark" ? "light" : "dark"));
}

function startSections() {
  const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const id of links.keys()) if (byId(id)) seen.observe(byId(id));
}
