// Fleet → site → pool → endpoint, as a table whose rows fold.

import { badge, element, percent, round, short, show } from "./dom.js";

const folded = new Set();
let known = 0;
const MANY = 60;  // endpoints from which pools are folded at first

export function drawTree(place, tree, redraw) {
  if (!known && tree.endpoints > MANY) {
    for (const site of tree.sites) for (const pool of site.pools) folded.add(`${site.name} ${pool.name}`);
  }
  known ||= tree.endpoints;
  const rows = tree.sites.flatMap((site) => siteRows(site, tree, redraw));
  const heads = ["", "State", "Share", "In flight", "Waiting", "KV", "Round trip", "Rollout, failover"];
  const head = element("tr", {}, ...heads.map((text, index) => element("th", { scope: "col", class: index > 1 && index < 7 ? "number" : undefined }, text || "Name")));
  const table = element("table", {}, element("caption", { class: "soft" }, gateways(tree)), element("thead", {}, head), element("tbody", {}, ...rows));
  show(place, element("div", { class: "scroll", "data-scroll": true, tabindex: 0, role: "region", "aria-label": "Fleet table" }, table));
}

function gateways(tree) {
  return tree.gateways.map((one) => {
    const state = one.behind.length ? `, ${one.behind.length} behind` : "";
    return `Gateway ${short(one.name)}${one.site ? ` at ${one.site}` : ""}: ${one.proxies} ${one.proxies === 1 ? "proxy" : "proxies"}${state}`;
  }).join("; ");
}

function siteRows(site, tree, redraw) {
  const key = `site ${site.name}`;
  const rows = [row("site", key, true, `Site ${site.name}`, [
    cell(badge(site.health)), number(percent(site.share)), number(round(site.in_flight)), number(""), number(""), number(""),
    cell(...failover(site)),
  ], redraw)];
  if (folded.has(key)) return rows;
  return rows.concat(site.pools.flatMap((pool) => poolRows(site, pool, redraw)));
}

function failover(site) {
  const away = site.failover.filter((one) => one.state !== "Healthy");
  const states = away.map((one) => element("span", {}, badge(one.state), ` ${short(one.pool)}${one.share === 1 ? "" : ` ${percent(one.share)}`} `));
  if (site.rto_s !== null && site.rto_s !== undefined) states.push(element("span", { class: "soft" }, ` last RTO ${round(site.rto_s, 2)} s`));
  return states;
}

function poolRows(site, pool, redraw) {
  const key = `${site.name} ${pool.name}`;
  const weights = pool.weights.map((one) => `${round(one.weight / 100, 2)} % of ${short(one.rule.split("/").slice(1).join("/"))}${models(one.models)}`).join(", ");
  const rows = [row("pool", key, true, short(pool.name), [
    cell(badge(pool.health), element("span", { class: "soft" }, ` ${pool.ready}/${pool.count}`)),
    number(percent(pool.share)), number(round(pool.in_flight)), number(""), number(""), number(""),
    cell(rollout(pool.rollout), element("span", { class: "soft" }, weights)),
  ], redraw)];
  if (folded.has(key)) return rows;
  return rows.concat(pool.endpoints.map((one) => row("endpoint", `${key} ${one.key}`, false, one.name, [
    cell(badge(one.state)), number(percent(one.share)), number(round(one.in_flight)), number(round(one.waiting)),
    number(percent(one.kv_usage)), number(one.rtt_ms === null ? "–" : `${round(one.rtt_ms, 1)} ms`),
    cell(element("span", { class: "soft" }, one.key)),
  ], redraw)));
}

function models(shares) {
  const words = Object.entries(shares ?? {}).map(([model, share]) => `${model} ${round(share / 100, 2)} %`);
  return words.length ? ` (${words.join(", ")})` : "";
}

function rollout(found) {
  if (!found) return null;
  return element("span", {}, badge(found.phase), ` ${found.role}, step ${found.step} of ${found.steps}, ${percent(found.weight)} `);
}

function row(kind, key, folds, name, cells, redraw) {
  const open = !folded.has(key);
  const button = folds && element("button", {
    type: "button", class: "fold", "data-key": key, "aria-expanded": String(open), "aria-label": `${open ? "Fold" : "Unfold"} ${name}`,
    onclick: () => { if (!folded.delete(key)) folded.add(key); redraw(); },
  }, open ? "▾" : "▸");
  return element("tr", { class: kind, "data-row": key }, element("th", { scope: "row" }, button || null, name), ...cells);
}

const cell = (...children) => element("td", {}, ...children);
const number = (text) => element("td", { class: "number" }, String(text));
