import polyfill from "event-source-polyfill";

import { listen } from "./listening.js";

/** Headers are given once. Without a byte for `heartbeatTimeout` it connects again. */
export function start({ url, types, token, watchdog }, report) {
  const headers = token && { Authorization: `Bearer ${token()}` };
  listen(new polyfill.EventSourcePolyfill(url, { headers, heartbeatTimeout: watchdog }), types, report);
}
