/**
 * Detection of connections that are dead though nothing has closed them.
 * @module
 */

import { DEFAULT_HEARTBEAT } from "./common.js";

/** Heartbeat intervals without a byte after which a connection is dead. */
const MAX_SILENT_HEARTBEATS = 2.5;

/**
 * Watch for silence: no byte for 2.5 heartbeat intervals.
 * @param {(reason: "silence") => void} onSilence
 */
export function createWatchdog(onSilence) {
  let limit = 0;
  let lastActivity = 0;
  let timer = 0;

  /** @param {number} [heartbeat] the gateway's interval in milliseconds */
  const setHeartbeat = (heartbeat = DEFAULT_HEARTBEAT) => {
    limit = MAX_SILENT_HEARTBEATS * heartbeat;
  };

  /** Bytes have arrived, or an attempt has started. */
  const reset = () => {
    lastActivity = Date.now();
    stop();
    timer = setTimeout(onSilence, limit, "silence");
  };

  const stop = () => clearTimeout(timer);

  /** Report silence at once if the limit has passed: while a machine sleeps, its timers sleep as well. */
  const check = () => {
    if (Date.now() - lastActivity > limit) onSilence("silence");
  };

  setHeartbeat();
  return { setHeartbeat, reset, stop, check };
}
