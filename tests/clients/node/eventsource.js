import { EventSource } from "eventsource";

import { fetching, listen } from "./listening.js";

/** As its README says; headers by its option `fetch`. */
export function start({ url, types, token }, report) {
  listen(new EventSource(url, token && { fetch: fetching(token) }), types, report);
}
