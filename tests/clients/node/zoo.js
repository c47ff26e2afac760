/**
 * The contract of the zoo, and the clients of npm. It is told by lines of JSON on stdin what to start: {job, client, url,
 * base, channels, types, watchdog, tokenFile}. What happens to a client it says in lines of JSON on stdout, with the job's
 * name and a kind: event {type, data, id}, open (each connection, where the client tells), error {message, status} (it
 * comes back unless an end follows), end (it will not come back).
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const CLIENTS = {
  "eventsource": "./eventsource.js",
  "eventsource-client": "./eventsource_client.js",
  "event-source-polyfill": "./event_source_polyfill.js",
  "reconnecting-eventsource": "./reconnecting_eventsource.js",
  "launchdarkly-eventsource": "./launchdarkly_eventsource.js",
  "sse.js": "./sse_js.js",
  "sse-gateway-client": "./ours.js",
  "sse-gateway-client, over EventSource": "./ours_over_eventsource.js",
  // These make a `window` and a `document`: after those that look for one when they are loaded.
  "@microsoft/fetch-event-source": "./fetch_event_source.js",
  "@microsoft/fetch-event-source, with retry": "./fetch_event_source_retrying.js",
};

const say = (job, kind, more) => process.stdout.write(`${JSON.stringify({ job, kind, ...more })}\n`);

const crash = (error) => say(null, "crash", { message: String(error?.stack ?? error) });

// A client that throws where nobody can catch it would end all others with it.
process.on("uncaughtException", crash);

const starts = {};
for (const [client, file] of Object.entries(CLIENTS)) starts[client] = (await import(file)).start;
say(null, "ready");

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const job = JSON.parse(line);
    const token = job.tokenFile && (() => readFileSync(job.tokenFile, "utf8"));
    try {
      starts[job.client]({ ...job, token }, (kind, more) => say(job.job, kind, more));
    } catch (error) {
      crash(error);
    }
  })
  .on("close", () => process.exit());
