import { SSE } from "sse.js";

import { Request } from "./request.js";

globalThis.XMLHttpRequest = Request;
globalThis.CustomEvent ??= class CustomEvent extends Event {}; // Node 18 has none

/** Headers are given once; without `autoReconnect` it never comes back. */
export function start({ url, types, token }, report) {
  const source = new SSE(url, { headers: token && { Authorization: `Bearer ${token()}` }, autoReconnect: true });
  source.onopen = () => report("open");
  source.onerror = ({ responseCode }) => report("error", { status: responseCode });
  for (const type of types)
    source.addEventListener(type, ({ data, lastEventId }) => report("event", { type, data, id: lastEventId }));
}
