// The last decisions of the picker, and one of them in full.

import { get } from "./api.js";
import { ago, badge, element, round, short, show } from "./dom.js";

export function drawPicks(place, answer, explained) {
  if (!answer.picks.length) {
    show(place, element("p", { class: "soft" }, "No decisions yet."));
    return;
  }
  const heads = ["When", "Request", "Pool", "Endpoint", "Tokens", "Result"];
  const rows = answer.picks.map((pick) => element("tr", {},
    element("td", {}, ago(pick.age_s)),
    element("td", {}, element("button", { type: "button", class: "link", "data-key": pick.pick, "aria-label": `Explain ${pick.request_id || pick.pick}`, onclick: () => explain(explained, pick.pick) }, (pick.request_id || pick.pick).slice(0, 13))),
    element("td", {}, short(pick.pool)),
    element("td", { title: pick.endpoint }, pick.name || pick.endpoint || "–"),
    element("td", { class: "number" }, round(pick.prompt_tokens)),
    element("td", {}, pick.status === 200 ? badge("ok") : element("span", { class: "error" }, `${pick.status || "passed"} ${pick.reason}`))));
  show(place, element("div", { class: "scroll", "data-scroll": true, tabindex: 0, role: "region", "aria-label": "Decisions table" },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)))), element("tbody", {}, ...rows))));
}

export async function explain(place, id) {
  const found = await get(`/api/v1/picks/${encodeURIComponent(id)}`);
  if (!found) {
    show(place, element("p", { class: "error" }, "This decision is not remembered: only the last hundreds are."));
    return;
  }
  const facts = [["Request", found.request_id], ["Model", found.model], ["Rule", found.route], ["Pool", found.pool], ["Bucket", bucket(found.arm)], ["Policy", found.policy],
    ["Prompt", `${found.prompt_tokens} tokens`], ["Order", found.endpoints.map((key) => found.names[key] ?? key).join(", ")], ["No affinity because", found.no_affinity_because], ["Reason", found.reason]];
  const list = element("dl", {}, ...facts.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
  const rows = found.candidates.map((one) => element("tr", {}, element("th", { scope: "row" }, called(found, one.endpoint)), element("td", { class: "number" }, round(one.score_ms, 1)),
    element("td", { class: "number" }, round(one.cached_tokens)), element("td", {}, Object.entries(one.terms_ms ?? {}).map(([name, value]) => `${name} ${round(value, 1)}`).join(", "))));
  const filtered = Object.entries(found.filtered).map(([key, why]) => element("tr", {}, element("th", { scope: "row" }, called(found, key)), element("td", {}), element("td", { class: "error" }, `filtered: ${why}`)));
  show(place, element("h3", {}, `Why ${called(found, found.endpoints[0]) || "no endpoint"}`), list,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Candidates" }, element("table", {},
      element("thead", {}, element("tr", {}, ...["Endpoint", "Cost (ms)", "Cached tokens", "Terms (ms)"].map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows, ...filtered))));
}

const called = (found, key) => (found.names[key] ? `${found.names[key]} (${key})` : key ?? "");
const bucket = (arm) => (arm && arm.bucket !== null ? `${arm.bucket} of 10000, by ${arm.sticky_by}` : "");
