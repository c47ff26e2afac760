// A dashboard that never shows incomplete data silently: a snapshot from the shop, joined without a gap to a stream.

const MAX_ORDERS = 100; // the newest are kept
const SHOWN = 12;
const STORY_LINES = 8;
const RETRY_MS = 2_000; // until a failed request is repeated

const find = (id) => document.getElementById(id);

// With npm it is: import { connect } from "sse-gateway-client", and nothing can fail.
const gateway = document.querySelector("meta[name=gateway]").content;
const { connect } = await import(`${gateway}/client.js`).catch((error) => {
  find("state").textContent = "The gateway does not answer";
  find("state").dataset.mood = "bad";
  setTimeout(() => location.reload(), RETRY_MS);
  throw error;
});

const orders = new Map(); // by number
let changes = 0;

// All tabs of this page share one stream.
const stream = connect(gateway, { channels: ["orders"], share: true });

// Each event carries the whole order with a version that grows, and so does the snapshot: whichever comes first, the
// newest wins, and an event that is in the snapshot already changes nothing.
function take(order) {
  const known = orders.get(order.number);
  if (known && known.version >= order.version) return;
  orders.set(order.number, order);
  draw();
}

stream.on("orders", ({ payload }) => {
  changes += 1;
  take(payload);
});

// The stream first, then the snapshot: what happens between the two is in both, and what happens later is an event. The
// other way round, what happens between the two would be in neither.
let isJoined = false;
stream.on("state", ({ state, reason, delay }) => {
  show(state, reason, delay);
  if (state === "open" && !isJoined) {
    isJoined = true;
    fetchOrders();
  }
});

// The gateway reports that events may be missing: fetch the state again.
stream.on("gap", ({ reason, missing }) => {
  addToStory(`A gap of ${missing ?? "some"} events (${reason}): asking the shop again.`);
  fetchOrders();
});

let isFetching = false;
let isOutdated = false; // since the snapshot in progress was requested
async function fetchOrders() {
  isOutdated = true;
  if (isFetching) return;
  isFetching = true;
  while (isOutdated) {
    isOutdated = false;
    try {
      const answer = await fetch("orders", { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const snapshot = await answer.json();
      snapshot.orders.forEach(take);
      addToStory(`Fetched ${snapshot.orders.length} orders.`);
      draw();
    } catch {
      addToStory("The shop does not answer; asking again.");
      isOutdated = true;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  isFetching = false;
}

const MOODS = { connecting: "wait", open: "good", waiting: "warn", offline: "bad", paused: "wait", closed: "bad" };
const WORDS = { connecting: "Connecting", open: "Live", waiting: "Reconnecting", offline: "Offline", paused: "Paused", closed: "Closed" };

let shownState;
function show(state, reason, delay) {
  find("state").dataset.mood = MOODS[state];
  find("why").textContent = [reason, delay && `again in ${(delay / 1_000).toFixed(1)} s`].filter(Boolean).join(", ");
  // An unchanged state is not announced again, neither to a screen reader nor in the story.
  if (find("state").textContent !== WORDS[state]) find("state").textContent = WORDS[state];
  if (state === "connecting" || state === shownState) return;
  shownState = state;
  addToStory(`${WORDS[state]}${reason ? ` (${reason})` : ""}.`);
}

function addToStory(text) {
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString([], { hour12: false });
  line.append(time, text);
  find("story").prepend(line);
  while (find("story").childElementCount > STORY_LINES) find("story").lastElementChild.remove();
}

// Once per frame, however many events arrive.
let isDue = false;
function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const newest = [...orders.values()].sort((one, other) => other.number - one.number);
    for (const { number } of newest.splice(MAX_ORDERS)) orders.delete(number);
    for (const status of ["created", "paid", "shipped"])
      find(status).textContent = newest.filter((order) => order.status === status).length;
    find("changes").textContent = changes.toLocaleString();
    find("empty").hidden = newest.length > 0;
    drawRows(newest.slice(0, SHOWN));
  });
}

// Unchanged rows stay in place, so that a screen reader, a selection or an animation in one is not interrupted.
function drawRows(newest) {
  const body = find("orders");
  const old = new Map([...body.rows].map((row) => [row.dataset.number, row]));
  newest.forEach((order, index) => {
    const known = old.get(`${order.number}`);
    old.delete(`${order.number}`);
    if (known?.dataset.version === `${order.version}`) return;
    const made = row(order);
    if (changes) made.className = "changed";
    if (known) known.replaceWith(made);
    else body.insertBefore(made, body.rows[index] ?? null);
  });
  for (const row of old.values()) row.remove();
}

const amounts = new Intl.NumberFormat([], { style: "currency", currency: "EUR" });

function row(order) {
  const made = document.createElement("tr");
  made.dataset.number = order.number;
  made.dataset.version = order.version;
  // Text, never HTML: the content is untrusted.
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = order.number;
  const [city, items, amount] = [order.city, order.items, amounts.format(order.cents / 100)].map((text) => {
    const cell = document.createElement("td");
    cell.textContent = text;
    return cell;
  });
  amount.className = "number";
  const status = document.createElement("span");
  status.className = "status";
  status.dataset.status = status.textContent = order.status;
  const last = document.createElement("td");
  last.append(status);
  made.append(head, city, items, amount, last);
  return made;
}
