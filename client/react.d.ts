/**
 * Subscribe to channels while the component is shown. Without a `url` there is no stream (nobody is signed in yet).
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL | null | undefined} url
 * @param {StreamOptions<C>} options
 * @returns {StreamState<C>}
 */
export function useStream<C extends object = Record<string, any>>(url: string | URL | null | undefined, options: StreamOptions<C>): StreamState<C>;
import type { StreamOptions } from "./hook.js";
import type { StreamState } from "./hook.js";
export * from "./hook.js";
