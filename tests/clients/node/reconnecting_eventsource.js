import { EventSource } from "eventsource";
import ReconnectingEventSource from "reconnecting-eventsource";

import { fetching, listen } from "./listening.js";

/** It wraps an EventSource: that of the package eventsource, to which it passes its options on. */
export function start({ url, types, token }, report) {
  const options = { eventSourceClass: EventSource, max_retry_time: 300, ...(token && { fetch: fetching(token) }) };
  listen(new ReconnectingEventSource(url, options), types, report);
}
