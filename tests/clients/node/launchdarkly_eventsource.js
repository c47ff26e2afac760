import { EventSource } from "launchdarkly-eventsource";

import { listen } from "./listening.js";

/** Headers are given once. A clean end is no `error` but an `end`, after which it comes back as well. */
export function start({ url, types, token, watchdog }, report) {
  const headers = token && { Authorization: `Bearer ${token()}` };
  const source = new EventSource(url, { headers, readTimeoutMillis: watchdog });
  listen(source, types, report);
  source.onend = () => report("error", { message: "the stream ended" });
  source.onclosed = () => report("end");
}
