// Runs clients, and prints what they tell as JSON lines: {client, event | change | asked | fault | ended}.
// What they are to do comes as JSON: {url, options, count, tokens, luck, closeAfter, iterate, clock}.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const { url, options, count = 1, tokens, luck, closeAfter, iterate, clock } = JSON.parse(process.argv[2]);
const say = (about) => process.stdout.write(`${JSON.stringify(about)}\n`);

// A fault of a page's handler, as its console would tell it.
process.on("uncaughtException", (error) => say({ fault: String(error) }));

// So that a delay is known: full jitter, but always the same part of its window.
if (luck !== undefined) Math.random = () => luck;

// Of many clients some ask at a time: Node gives a connection up that was not made for ten seconds.
const { fetch } = globalThis;
const queue = [];
let free = 50;
globalThis.fetch = async (...given) => {
  if (free) free--;
  else await new Promise((go) => queue.push(go));
  try {
    return await fetch(...given);
  } finally {
    if (queue.length) queue.shift()();
    else free++;
  }
};

const client = new URL("../../client/client.js", import.meta.url);
const { connect } = await import(clock ? clocked(readFileSync(client, "utf8")) : client);

/**
 * Return the module with a clock of its own, which stands still but for what comes on stdin: lines of milliseconds. Each
 * is answered by {moved}; a timer for silence is told as {watchdog}.
 */
function clocked(module) {
  let now = 1_000_000; // as a real one, never 0
  let last = 0;
  const timers = new Map();
  globalThis.own = {
    Date: { now: () => now },
    setTimeout: (call, delay = 0, ...given) => {
      timers.set(++last, { at: now + delay, call: () => call(...given) });
      if (given[0] === "silence") say({ watchdog: delay });
      return last;
    },
    clearTimeout: (timer) => timers.delete(timer),
  };
  createInterface({ input: process.stdin }).on("line", (line) => {
    now += Number(line);
    for (const [timer, { at, call }] of timers) if (at <= now && timers.delete(timer)) call();
    say({ moved: now });
  });
  return `data:text/javascript,${encodeURIComponent(`const { Date, setTimeout, clearTimeout } = globalThis.own;${module}`)}`;
}

for (let client = 0; client < count; client++) {
  // The token of each answer to the question for one; the last one for all that follow. An {error} is thrown.
  const token = tokens && ((refused) => {
    const given = tokens.length > 1 ? tokens.shift() : tokens[0];
    say({ client, asked: refused ?? null });
    if (given?.error) throw new Error(given.error);
    return given;
  });
  const stream = connect(url, { ...options, ...(token && { token }) });
  stream.on("state", (change) => say({ client, change }));
  if (iterate)
    (async () => {
      for await (const event of stream) say({ client, event });
      say({ client, ended: stream.reason });
    })();
  else {
    let left = closeAfter;
    stream.on("*", (event) => {
      say({ client, event });
      if (--left === 0) stream.close();
    });
  }
  stream.on("broken", () => { throw new Error("of the page"); });
}
