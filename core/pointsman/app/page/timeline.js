// What rollouts, failovers and people did, from the audit log: a line of marks, and the same as a list.

import { ago, drawn, element, short, show } from "./dom.js";

const LANES = [["rollout", "Rollouts"], ["failover", "Failovers"], ["", "Changes"]];
const WIDTH = 600, LANE = 24, LEFT = 72;

const lane = (record) => {
  const found = LANES.findIndex(([word]) => word && (record.action.startsWith(word) || record.actor.toLowerCase().startsWith(word)));
  return found < 0 ? LANES.length - 1 : found;
};

export function drawTimeline(place, audit) {
  const records = audit.records.filter((record) => !record.action.endsWith(".acked"));
  if (!records.length) {
    show(place, element("p", { class: "soft" }, "Nothing was changed yet."));
    return;
  }
  const now = Date.now() / 1000;
  const times = records.map((record) => Date.parse(record.time) / 1000);
  const first = Math.min(...times, now - 60);
  const at = (time) => LEFT + 6 + ((time - first) / (now - first)) * (WIDTH - LEFT - 12);
  const height = LANES.length * LANE + 16;
  const lanes = LANES.flatMap(([, name], index) => [
    drawn("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: index * LANE + LANE / 2, y2: index * LANE + LANE / 2 }),
    drawn("text", { x: 0, y: index * LANE + LANE / 2 + 4 }, name),
  ]);
  const marks = records.map((record, index) => drawn("circle", { class: `mark s${bad(record) ? 4 : lane(record)}`, r: 5, cx: at(times[index]).toFixed(0), cy: lane(record) * LANE + LANE / 2 },
    drawn("title", {}, `${record.action} ${short(record.target)}`)));
  const ends = [drawn("text", { x: LEFT, y: height - 2 }, ago(now - first)), drawn("text", { x: WIDTH - 24, y: height - 2 }, "now")];
  const items = records.map((record, index) => element("li", {},
    element("time", { datetime: record.time, class: "soft" }, `${ago(now - times[index])} `),
    element("span", { class: bad(record) ? "error" : undefined }, `${record.action} ${short(record.target)}`),
    element("span", { class: "soft" }, ` by ${record.actor} (${record.via})${record.reason ? `: ${record.reason}` : ""}`))).reverse();
  show(place,
    drawn("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `Time line of ${records.length} events; the list below tells them` }, ...lanes, ...marks, ...ends),
    element("ol", { class: "events", "data-scroll": true, tabindex: 0, "aria-label": "Events, newest first" }, ...items));
}

// What took traffic away from somebody.
const bad = (record) => /\b(abort\w*|failed|rolled|evacuated|drained)\b/i.test(record.action);
