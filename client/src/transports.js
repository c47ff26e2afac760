/**
 * The ways to connect once: a streaming `fetch`, or an `EventSource`.
 * @module
 */

import { aborted } from "./common.js";
import { createParser } from "./parser.js";

/** @import { Settings, Transport } from "./internals.js" */

/** Statuses below 500 that do not last: request timeout, too early, too many requests. */
const TEMPORARY_STATUSES = [408, 425, 429];

/** Milliseconds after a `stream.close`: an `EventSource` does not reveal the `retry:` that it received. */
const EVENTSOURCE_RETRY = 3_000;

/** A response that is not the one requested. */
export class Rejection extends Error {
  /**
   * @param {string} reason
   * @param {boolean} isFinal whether another attempt would get the same response
   * @param {number} retryAfter the least delay before another attempt, in milliseconds; 0 if none was requested
   */
  constructor(reason, isFinal, retryAfter) {
    super(reason);
    this.reason = reason;
    this.isFinal = isFinal;
    this.retryAfter = retryAfter;
  }
}

/**
 * Throw `Rejection` unless a response is an event stream or a new ticket.
 * @param {Response} response
 */
async function check(response) {
  const { status, headers } = response;
  const isStream = status === 200 && /^text\/event-stream/i.test(headers.get("Content-Type") ?? "");
  if (isStream || status === 201) return;
  const body = await response.json().catch(() => null);
  const reason = status === 200 ? "bad_answer" : status === 204 ? "no_content" : body?.error ?? `status ${status}`;
  // WHATWG HTML §9.2.3: 204 asks a client to stop reconnecting.
  const isFinal = status === 204 || (status >= 400 && status < 500 && !TEMPORARY_STATUSES.includes(status));
  throw new Rejection(reason, isFinal, 1_000 * Number(headers.get("Retry-After")) || 0);
}

/**
 * Return the URL of one of the gateway's endpoints, with the subscription in its query.
 * @param {Settings} settings
 * @param {string} path
 * @param {Record<string, unknown>} [parameters]
 */
function endpoint({ base, channels, client, last, since, types }, path, parameters) {
  const query = new URLSearchParams(channels.map((name) => ["channel", name]));
  for (const [name, value] of Object.entries({ client, last, since, types, ...parameters }))
    if (value !== undefined) query.set(name, String(value));
  return `${base}/${path}?${query}`;
}

/** @type {Transport} */
async function viaFetch({ settings, lastEventId, signal, getToken, onActivity, onMessage }) {
  const { credentials, token } = settings;
  const url = endpoint(settings, "events", { format: "envelope" });
  /** @param {string | null | undefined} bearer */
  const get = (bearer) => {
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (lastEventId) headers["Last-Event-ID"] = lastEventId;
    if (bearer) headers.Authorization = `Bearer ${bearer}`;
    return fetch(url, { headers, credentials, signal, cache: "no-store" });
  };
  const bearer = await getToken();
  let response = await get(bearer);
  if (response.status === 401 && typeof token === "function") response = await get(await getToken(bearer ?? undefined));
  await check(response);
  const parse = createParser(onMessage);
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    onActivity();
    parse(value);
  }
}

/**
 * An `EventSource` cannot send a token: it is exchanged for a ticket, which the URL may carry.
 * @type {Transport}
 */
async function viaEventSource({ settings, lastEventId, signal, getToken, onActivity, onMessage }) {
  const { credentials } = settings;
  const token = await getToken();
  let ticket;
  if (token) {
    const headers = { Authorization: `Bearer ${token}` };
    const response = await fetch(endpoint(settings, "tickets"), { method: "POST", headers, credentials, signal });
    await check(response);
    ({ ticket } = await response.json());
  }
  // Heartbeats as events: comments are invisible to a page, and the watchdog needs them.
  const url = endpoint(settings, "events", { format: "message", heartbeat: "event", ticket, lastEventId });
  const source = new EventSource(url, { withCredentials: credentials === "include" });
  for (const event of ["message", "stream.open", "stream.gap", "stream.close", "stream.heartbeat"])
    source.addEventListener(event, ({ data, lastEventId }) => {
      onActivity();
      onMessage({ event, data, id: lastEventId || undefined, retry: EVENTSOURCE_RETRY });
    });
  await Promise.race([aborted(signal), new Promise((resolve) => (source.onerror = resolve))]);
  source.close(); // it would reconnect with a ticket that was used
}

export const TRANSPORTS = { fetch: viaFetch, eventsource: viaEventSource };

/** The best transport of this browser. */
export const defaultTransport = () => (globalThis.ReadableStream ? "fetch" : "eventsource");
