/**
 * Subscribe to channels while the component is mounted. Without a `url` there is no stream (nobody is signed in yet).
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL | null | undefined} url
 * @param {StreamOptions<C>} options
 * @returns {StreamState<C>}
 */
export function useStream<C extends object = Record<string, any>>(url: string | URL | null | undefined, options: StreamOptions<C>): StreamState<C>;
import type { StreamOptions } from "./react-types.js";
import type { StreamState } from "./react-types.js";
export * from "./react-types.js";
