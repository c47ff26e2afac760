// @ts-check
/**
 * A stream of an sse-gateway for as long as a component is shown. React 18 and newer.
 * @module
 */

import { useInsertionEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { connect } from "./client.js";

/** @import { StreamOptions, StreamState } from "./hook.js" */
/** @import { Options } from "./types.js" */

/** @type {StreamState<any>} */
const CONNECTING = Object.freeze({ state: "connecting", stream: null });

/** @type {StreamState<any>} */
const CLOSED = Object.freeze({ state: "closed", stream: null });

/**
 * Subscribe to channels while the component is shown. Without a `url` there is no stream (nobody is signed in yet).
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL | null | undefined} url
 * @param {StreamOptions<C>} options
 * @returns {StreamState<C>}
 */
export function useStream(url, options) {
  const newest = useRef(options);
  // Before any other effect, and silent on a server.
  useInsertionEffect(() => {
    newest.current = options;
  });
  const { on, token, ...rest } = options;
  // Equal options in a new object, as each render makes one, are no reason to connect again.
  const key = JSON.stringify([url, rest, typeof token === "function" || (token ?? null)]);
  const store = useMemo(() => storeOf(url, rest, newest), [key]);
  return useSyncExternalStore(store.subscribe, store.told, store.first);
}

/**
 * @param {string | URL | null | undefined} url
 * @param {Options} options
 * @param {{current: any}} newest
 */
function storeOf(url, options, newest) {
  const first = url == null ? CLOSED : CONNECTING;
  let told = first;
  return {
    told: () => told,
    first: () => first,
    /** @param {() => void} changed */
    subscribe: (changed) => {
      if (url == null) return () => {};
      const { token } = newest.current;
      const ask = (/** @type {string | undefined} */ refused) => newest.current.token(refused);
      const stream = connect(url, { ...options, token: typeof token === "function" ? ask : token });
      const ends = [...new Set([...options.channels, "gap", "state", "*"])].map((name) =>
        stream.on(name, (value) => newest.current.on?.[name]?.(value)),
      );
      ends.push(
        stream.on("state", (change) => {
          told = { ...change, stream: told.stream ?? (change.state === "open" ? stream : null) };
          changed();
        }),
      );
      return () => {
        for (const end of ends) end();
        stream.close();
        told = first; // StrictMode subscribes once more
      };
    },
  };
}
