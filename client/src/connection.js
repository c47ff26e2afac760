/**
 * One connection to the gateway, made again whenever it ends.
 * @module
 */

import { createBackoff } from "./backoff.js";
import { aborted, ignore, reportUncaught, resolveToken } from "./common.js";
import { watchLifecycle } from "./lifecycle.js";
import { Rejection, TRANSPORTS } from "./transports.js";
import { createWatchdog } from "./watchdog.js";

/** @import { Message, Settings, Update } from "./internals.js" */
/** @import { State } from "./types.js" */

/** Timers hold 31 bits of milliseconds; a longer delay would fire at once. */
const MAX_TIMER = 1e9;

/**
 * Connect, wait, and connect again after the last event, until a response is final or the connection is closed.
 *
 * Each attempt has an `AbortController` of its own. Whatever ends an attempt (the network, the gateway, the watchdog,
 * the page) calls `drop` with a reason; the first reason counts, and is the one that the stream reports.
 * @param {Settings} settings
 * @param {string | undefined} lastEventId
 * @param {(update: Update) => void} onUpdate first called when the caller of this function has returned
 */
export function openConnection(settings, lastEventId, onUpdate) {
  const backoff = createBackoff(settings.minDelay, settings.maxDelay);
  const watchdog = createWatchdog(drop);
  const closed = new AbortController();
  let attempt = new AbortController();
  /** @type {string | undefined} why the last attempt ended */
  let dropReason;
  /** @type {string | undefined} why there will be no other attempt */
  let closeReason;
  /** @type {string | undefined} the gateway's name of the connection, for acknowledgements */
  let connectionId;
  let isPaused = false;
  /** The time of the next attempt while waiting for it, else 0. */
  let retryAt = 0;
  let retryTimer = 0;
  let endWait = ignore;

  /** @param {string} reason */
  function close(reason) {
    closeReason ??= reason;
    drop(reason);
    endWait();
  }

  async function run() {
    await null; // the page registers its handlers first
    while (!closeReason) {
      if (!isPaused) await connect();
      if (!closeReason) await wait();
    }
    closed.abort();
    report("closed", closeReason);
  }

  /** Make one attempt; resolves when its connection has ended. */
  async function connect() {
    const { signal } = (attempt = new AbortController());
    let reason = "network";
    dropReason = undefined;
    backoff.onAttempt();
    report("connecting");
    watchdog.reset();
    const ended = TRANSPORTS[settings.transport]({
      settings,
      lastEventId,
      signal,
      getToken: async (refused) => {
        reason = "token"; // if it throws
        const token = await resolveToken(settings.token, refused);
        reason = "network";
        signal.throwIfAborted();
        return token;
      },
      // Bytes that were read before the end may be parsed after it: they belong to no connection any more.
      onActivity: () => signal.aborted || watchdog.reset(),
      onMessage: (message) => signal.aborted || receive(message),
    });
    try {
      // A transport may hang: in the page's `token()`, which nobody can abort.
      await Promise.race([ended, aborted(signal)]);
    } catch (error) {
      if (error instanceof Rejection) {
        ({ reason } = error);
        backoff.require(error.retryAfter);
        if (error.isFinal) closeReason ??= reason;
      }
    }
    drop(reason);
    watchdog.stop();
  }

  /** Wait until the next attempt is due; while the page is paused, until it is shown again. */
  async function wait() {
    const isOffline = globalThis.navigator?.onLine === false;
    const delay = backoff.next(isOffline);
    const ended = new Promise((resolve) => (endWait = () => resolve(null)));
    if (isPaused) report("paused");
    else {
      schedule(Date.now() + delay);
      report(isOffline ? "offline" : "waiting", dropReason, Math.round(delay));
    }
    await ended;
    clearTimeout(retryTimer);
    retryAt = 0;
  }

  /** @param {number} time */
  function schedule(time) {
    clearTimeout(retryTimer);
    retryAt = time;
    retryTimer = setTimeout(endWait, Math.min(time - Date.now(), MAX_TIMER));
  }

  /** Retry early, or find out that the connection died while the machine slept. */
  function hurry() {
    const time = backoff.earlyRetryAt();
    if (time < retryAt) schedule(time);
    else if (!retryAt) watchdog.check();
  }

  /**
   * A page with an open connection does not enter the back/forward cache.
   * @param {boolean} isNowPaused
   */
  function pause(isNowPaused) {
    if (isPaused === isNowPaused) return;
    isPaused = isNowPaused;
    drop("paused");
    endWait();
  }

  /** @param {string} reason */
  function drop(reason) {
    dropReason ??= reason;
    attempt.abort();
  }

  /** @param {Message} message */
  function receive({ event, data, id, retry = 0 }) {
    let body;
    try {
      body = JSON.parse(data);
    } catch {
      return reportUncaught(new SyntaxError(`The event ${id} is not JSON`));
    }
    if (event === "stream.heartbeat") return acknowledge(body.nonce);
    if (event === "stream.close") {
      backoff.require(retry);
      if (body.reconnect === false) closeReason ??= body.reason;
      return drop(body.reason);
    }
    const previousId = lastEventId;
    lastEventId = id ?? previousId;
    if (event === "stream.open") {
      onUpdate({ id, previousId });
      connectionId = body.connection;
      watchdog.setHeartbeat(body.heartbeat);
      backoff.onOpen(retry);
      report("open");
    } else {
      if (event === "stream.gap") body.type = event;
      onUpdate({ id, previousId, event: body });
    }
  }

  /**
   * Answer a heartbeat that has a nonce, by a request that needs no CORS preflight (Fetch, "CORS protocol").
   * @param {string | undefined} nonce
   */
  function acknowledge(nonce) {
    const url = `${settings.base}/streams/${connectionId}/ack`;
    if (nonce) fetch(url, { method: "POST", body: nonce }).catch(ignore);
  }

  /**
   * @param {State} state
   * @param {string} [reason]
   * @param {number} [delay]
   */
  function report(state, reason, delay) {
    onUpdate({ change: { state, reason, delay } });
  }

  watchLifecycle(closed.signal, { onReturn: hurry, onOffline: () => drop("offline"), onPause: pause });
  run();
  return { close };
}
