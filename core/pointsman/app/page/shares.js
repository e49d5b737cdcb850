// Shares of the traffic as stacked areas: one column for each slot of seconds, 0 to 100 %.

import { drawn, element, percent, round, short, show } from "./dom.js";

const WIDTH = 600, HEIGHT = 180, LEFT = 34, BOTTOM = 18, COLOURS = 8;

export function drawShares(place, rate, traffic, by) {
  const series = Object.entries(traffic[by]);
  const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
  series.sort((one, other) => total(other[1]) - total(one[1]) || (one[0] < other[0] ? -1 : 1));
  // Only seven have a colour of their own; the rest are one.
  const shown = series.slice(0, COLOURS - 1);
  if (series.length >= COLOURS) {
    const rest = series.slice(COLOURS - 1).map((one) => one[1]);
    shown.push([`${rest.length} others`, rest[0].map((_, index) => rest.reduce((sum, counts) => sum + counts[index], 0))]);
  }
  const slots = traffic.requests.length;
  const sums = traffic.requests.map((_, index) => shown.reduce((sum, [, counts]) => sum + counts[index], 0));
  const width = (WIDTH - LEFT) / slots, height = HEIGHT - BOTTOM;
  const bars = [];
  for (let index = 0; index < slots; index += 1) {
    let below = 0;
    for (const [position, [, counts]] of shown.entries()) {
      if (!counts[index]) continue;
      const part = counts[index] / sums[index];
      bars.push(drawn("rect", { class: `s${position}`, x: (LEFT + index * width).toFixed(2), y: (height * (1 - below - part)).toFixed(2), width: (width + 0.3).toFixed(2), height: (height * part).toFixed(2) }));
      below += part;
    }
  }
  const lines = [0, 0.5, 1].flatMap((part) => [
    drawn("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: height * (1 - part), y2: height * (1 - part) }),
    drawn("text", { x: 0, y: Math.max(10, height * (1 - part) + 3) }, `${part * 100} %`),
  ]);
  const minutes = round((slots * traffic.slot_s) / 60, 1);
  const marks = [drawn("text", { x: LEFT, y: HEIGHT - 3 }, `${minutes} min ago`), drawn("text", { x: WIDTH - 24, y: HEIGHT - 3 }, "now")];
  const recent = (counts) => total(counts.slice(-3));
  const now = recent(traffic.requests);
  const label = shown.map(([name, counts]) => `${name} ${percent(now ? recent(counts) / now : null)}`).join(", ") || "no requests yet";
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Shares now: ${label}` }, ...bars, ...lines, ...marks);
  const legend = element("ul", { class: "legend" }, ...shown.map(([name, counts], index) => element("li", {},
    drawn("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, drawn("rect", { class: `s${index}`, width: 1, height: 1 })),
    `${short(name)} ${percent(now ? recent(counts) / now : null)}`)));
  show(place, picture, legend);
  const last = traffic.requests.slice(-13, -1), failed = total(traffic.failed.slice(-13, -1));
  show(rate, `${round(total(last) / (last.length * traffic.slot_s), 1)} requests/s over the last minute${failed ? `, ${failed} failed` : ""}`);
}
