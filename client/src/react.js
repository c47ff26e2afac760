/**
 * A stream for as long as a React component is mounted. React 18 and newer.
 * @module
 */

import { useInsertionEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { connect } from "./client.js";

/** @import { StreamOptions, StreamState } from "./react-types.js" */
/** @import { Options } from "./types.js" */

/** @type {StreamState<any>} */
const CONNECTING = Object.freeze({ state: "connecting", stream: null });

/** @type {StreamState<any>} */
const CLOSED = Object.freeze({ state: "closed", stream: null });

/**
 * Subscribe to channels while the component is mounted. Without a `url` there is no stream (nobody is signed in yet).
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL | null | undefined} url
 * @param {StreamOptions<C>} options
 * @returns {StreamState<C>}
 */
export function useStream(url, options) {
  const latest = useRef(options);
  // Runs before all other effects; unlike a layout effect it does not warn on a server.
  useInsertionEffect(() => {
    latest.current = options;
  });
  const { on, token, ...rest } = options;
  // Each render passes a new object: equal values are no reason to connect again.
  const key = JSON.stringify([url, rest, typeof token === "function" || (token ?? null)]);
  const store = useMemo(() => createStore(url, rest, latest), [key]);
  return useSyncExternalStore(store.subscribe, store.getSnapshot, store.getServerSnapshot);
}

/**
 * Return an external store whose subscription is the stream.
 * @param {string | URL | null | undefined} url
 * @param {Options} options
 * @param {{current: any}} latest the options of the latest render
 */
function createStore(url, options, latest) {
  const initial = url == null ? CLOSED : CONNECTING;
  let snapshot = initial;
  return {
    getSnapshot: () => snapshot,
    getServerSnapshot: () => initial,
    /** @param {() => void} onChange */
    subscribe: (onChange) => {
      if (url == null) return () => {};
      const { token } = latest.current;
      const getToken = (/** @type {string | undefined} */ refused) => latest.current.token(refused);
      const stream = connect(url, { ...options, token: typeof token === "function" ? getToken : token });
      const removers = [...new Set([...options.channels, "gap", "state", "*"])].map((name) =>
        stream.on(name, (value) => latest.current.on?.[name]?.(value)),
      );
      removers.push(
        stream.on("state", (change) => {
          snapshot = { ...change, stream: snapshot.stream ?? (change.state === "open" ? stream : null) };
          onChange();
        }),
      );
      return () => {
        for (const remove of removers) remove();
        stream.close();
        snapshot = initial; // StrictMode subscribes again
      };
    },
  };
}
