// Asks the admin API once a second and draws what it says; nothing on this page changes the fleet.

import { get, Refused, setToken } from "./api.js";
import { badge, byId, element, show } from "./dom.js";
import { drawPicks, explain } from "./picks.js";
import { drawShares } from "./shares.js";
import { drawTimeline } from "./timeline.js";
import { drawTree } from "./tree.js";

const EVERY_MS = 1000;
const AUDIT_EVERY = 5;  // rounds: the log is read from the disk

let round = 0, seen = {}, timer, running = false;
let held = false;  // a button that is replaced between press and release would not be clicked

async function update() {
  clearTimeout(timer);
  if (document.hidden || running) return;
  running = true;
  try {
    const wanted = ["tree", "traffic", "picks?limit=12", ...(round % AUDIT_EVERY ? [] : ["audit?limit=60"])];
    const found = await Promise.all(wanted.map((path) => get(`/api/v1/${path}`)));
    seen = { ...seen, ...Object.fromEntries(wanted.map((path, index) => [path.split("?")[0], found[index]])) };
    round += 1;
    connected(true);
    draw();
  } catch (problem) {
    if (problem instanceof Refused) { login(problem); return; }
    connected(false);
    round = 0;
  } finally {
    running = false;
  }
  timer = setTimeout(update, EVERY_MS);
}

function draw() {
  if (held) return;
  const { tree, traffic, picks, audit } = seen;
  show(byId("health"), badge(tree.health));
  show(byId("summary"), `${tree.ready} of ${tree.endpoints} endpoints ready, in flight: ${tree.in_flight}, version ${tree.version}`);
  show(byId("reasons"), ...tree.reasons.map((text) => element("li", {}, text)));
  drawTree(byId("fleet"), tree, draw);
  drawShares(byId("shares"), byId("rate"), traffic, byId("by").value);
  if (!byId("hold").checked) drawPicks(byId("picks"), picks, byId("explained"));
  if (audit) drawTimeline(byId("timeline"), audit);
}

function connected(yes) {
  byId("login").hidden = true;
  if (yes) byId("desk").hidden = false;
  show(byId("link"), yes ? "" : element("span", { class: "error" }, "No answer from the control plane: what stands here is old. Gateways go on."));
}

function login(refused) {
  byId("desk").hidden = true;
  byId("login").hidden = !refused.token;
  show(byId("health"), badge("locked"));
  show(byId("link"), refused.token ? "" : element("span", { class: "error" }, `Not let in: ${refused.message}.`));
  if (refused.token) byId("token").focus();
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  byId("token").value = "";
  round = 0;
  show(byId("refused"), "");
  await update();
  if (!byId("login").hidden) show(byId("refused"), "That is not the token.");
});
byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("request").value.trim()) explain(byId("explained"), byId("request").value.trim());
});
byId("by").addEventListener("change", () => seen.traffic && draw());
document.addEventListener("pointerdown", () => { held = true; });
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => { held = false; });
document.addEventListener("visibilitychange", update);
update();
