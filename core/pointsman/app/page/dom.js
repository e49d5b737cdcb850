// Elements from plain values. Names come from manifests and clients: they are only ever text, never HTML.

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "onclick") node.addEventListener("click", value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== undefined && child !== null && child !== ""));
  return node;
}

// Replaces the content of `place` only when it differs, so that focus, selection and screen readers are left alone.
export function show(place, ...children) {
  const fresh = document.createElement("div");
  fresh.append(...children);
  const focus = place.contains(document.activeElement) ? document.activeElement.getAttribute("data-key") : null;
  const scrolled = [...place.querySelectorAll("[data-scroll]")].map((node) => [node.scrollLeft, node.scrollTop]);
  if (sameTree(place, fresh)) return;
  place.replaceChildren(...fresh.childNodes);
  place.querySelectorAll("[data-scroll]").forEach((node, index) => {
    if (scrolled[index]) [node.scrollLeft, node.scrollTop] = scrolled[index];
  });
  if (focus !== null) {
    for (const node of place.querySelectorAll("[data-key]")) if (node.getAttribute("data-key") === focus) node.focus();
  }
}

function sameTree(one, other) {
  if (one.childNodes.length !== other.childNodes.length) return false;
  return [...one.childNodes].every((node, index) => node.isEqualNode(other.childNodes[index]));
}

export const badge = (state) => element("span", { class: `badge ${word(state)}` }, String(state));

// A state as a class name: only words of ours get a colour.
const word = (state) => (/^[A-Za-z]+$/.test(String(state)) ? String(state) : "unknown");

export const percent = (share) => (share === null || share === undefined ? "–" : `${round(share * 100, share < 0.1 ? 2 : 1)} %`);

export function round(value, digits = 0) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: digits, useGrouping: false });
}

export function short(name) {
  return String(name).replace(/^default\//, "");
}

export function ago(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
}
