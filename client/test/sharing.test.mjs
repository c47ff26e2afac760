// Tabs that share a stream, in one process: what reaches a tab that missed messages of the leader.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { joinShared } from "../src/sharing.js";

/** The part of Web Locks that an election needs: exclusive locks in the order of their requests. */
const queues = new Map();
const locks = {
  async request(name, { mode, signal }, callback) {
    if (mode === "shared") return callback();
    const before = queues.get(name) ?? Promise.resolve();
    const granted = before.then(() => (signal?.aborted ? undefined : callback()));
    queues.set(name, granted);
    return granted;
  },
};
Object.defineProperty(globalThis, "navigator", { value: { locks }, configurable: true });

/** A `BroadcastChannel` that can be made deaf. */
const channels = new Set();
globalThis.BroadcastChannel = class {
  isDeaf = false;
  constructor() {
    channels.add(this);
  }
  postMessage(message) {
    for (const other of channels)
      if (other !== this && !other.isDeaf) setImmediate(() => other.onmessage({ data: structuredClone(message) }));
  }
  close() {
    channels.delete(this);
  }
};

/** The gateway: one stream, to which the test writes. */
let requests = [];
let writer;
globalThis.fetch = async (url, { headers }) => {
  requests.push(headers["Last-Event-ID"]);
  const { readable, writable } = new TransformStream();
  writer = writable.getWriter();
  send("stream.open", { connection: "c" }, headers["Last-Event-ID"] ?? "0");
  return new Response(readable, { headers: { "Content-Type": "text/event-stream" } });
};

function send(event, data, id) {
  const frame = `event: ${event}\nid: ${id}\ndata: ${JSON.stringify(data)}\n\n`;
  writer.write(new TextEncoder().encode(frame));
}

function publish(first, last) {
  for (let number = first; number <= last; number++)
    send("message", { channel: "orders", id: `${number}`, type: null, payload: number }, `${number}`);
}

const tabs = [];

/** Open a tab; `got` has its payloads, and of a gap the reason with the last id before it. */
async function open() {
  const settings = {
    base: "https://gw.test", channels: ["orders"], client: `${tabs.length}`,
    minDelay: 1, maxDelay: 1, transport: "fetch",
  };
  const got = [];
  const states = [];
  const shared = joinShared(settings, "sse-gateway test", ({ change, event }) => {
    if (change) states.push(change.state);
    if (event) got.push(event.payload ?? `${event.reason} ${event.after}`);
  });
  const tab = { got, states, settings, close: shared.close, channel: [...channels].at(-1) };
  tabs.push(tab);
  await until(() => states.at(-1) === "open");
  return tab;
}

async function until(condition) {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

afterEach(() => {
  for (const tab of tabs.splice(0)) tab.close();
  queues.clear();
  requests = [];
});

const range = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

test("one connection, and every tab has each event once", async () => {
  const [first, second] = [await open(), await open()];
  publish(1, 3);
  await until(() => second.got.length === 3);
  assert.deepEqual([first.got, second.got], [range(1, 3), range(1, 3)]);
  assert.deepEqual(requests, [undefined]);
  assert.equal(second.settings.client, first.settings.client, "the next leader replaces this connection");
});

test("a tab that missed events receives them from the leader", async () => {
  const [first, second] = [await open(), await open()];
  publish(1, 1);
  await until(() => second.got.length === 1);
  second.channel.isDeaf = true;
  publish(2, 900);
  await until(() => first.got.length === 900);
  second.channel.isDeaf = false;
  publish(901, 901);
  await until(() => second.got.length === 901);
  assert.deepEqual(second.got, range(1, 901));
});

test("a tab that missed more than the leader keeps receives a gap, and later events", async () => {
  const [first, second] = [await open(), await open()];
  publish(1, 1);
  await until(() => second.got.length === 1);
  second.channel.isDeaf = true;
  publish(2, 1_500);
  await until(() => first.got.length === 1_500);
  second.channel.isDeaf = false;
  publish(1_501, 1_501);
  await until(() => second.got.length === 2);
  publish(1_502, 1_502);
  await until(() => second.got.length === 3);
  assert.deepEqual(second.got, [1, "handover 1", 1_502]);
});

test("the next leader resumes at its own resume point, and no tab has an event twice", async () => {
  const [first, second, third] = [await open(), await open(), await open()];
  publish(1, 1);
  await until(() => second.got.length === 1 && third.got.length === 1);
  second.channel.isDeaf = true;
  publish(2, 3);
  await until(() => third.got.length === 3);
  first.close();
  second.channel.isDeaf = false;
  await until(() => requests.length === 2 && second.states.at(-1) === "open");
  assert.equal(requests[1], "1");
  publish(2, 4);
  await until(() => second.got.length === 4 && third.got.length === 4);
  assert.deepEqual([second.got, third.got], [range(1, 4), range(1, 4)]);
});
