/**
 * Small functions that several modules need.
 * @module
 */

/** @import { Gap } from "./types.js" */

/**
 * Heartbeat interval in milliseconds until the gateway reports its own; also the interval at which the leading tab
 * signals that it is alive, and the longest wait of a worker for a token.
 */
export const DEFAULT_HEARTBEAT = 15_000;

export const ignore = () => {};

/** Return a random name for a client or a tab. `crypto.randomUUID` is missing on plain http. */
export const randomName = () => `${Math.random()}`;

/**
 * Resolve when a signal is aborted.
 * @param {AbortSignal} signal
 * @returns {Promise<unknown>}
 */
export const aborted = (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve));

/**
 * Throw an error where the console and `window.onerror` report it, and no caller fails.
 * @param {unknown} error
 */
export const reportUncaught = (error) => {
  setTimeout(() => {
    throw error;
  });
};

/**
 * Return a gap of each channel.
 * @param {string[]} channels
 * @param {string} reason
 * @param {string | null} [after] the last id before the gap
 * @returns {Gap[]}
 */
export const gapsOf = (channels, reason, after = null) =>
  channels.map((channel) => ({ type: "stream.gap", channel, reason, after, oldest: null }));

/**
 * Return the token of the option `token`, which may be a function.
 * @param {import("./types.js").Options["token"]} token
 * @param {string} [refused] the token that the gateway has rejected
 */
export const resolveToken = (token, refused) => (typeof token === "function" ? token(refused) : token);
