/**
 * A stream of an sse-gateway for as long as a component is shown. React 18 and newer.
 * @module
 */
import type { StreamOptions, StreamState } from "./types.js";
/**
 * Subscribe to channels while the component is shown. Without a `url` there is no stream (nobody is signed in yet).
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL | null | undefined} url
 * @param {StreamOptions<C>} options
 * @returns {StreamState<C>}
 */
export declare function useStream<C extends object = Record<string, any>>(url: string | URL | null | undefined, options: StreamOptions<C>): StreamState<C>;
