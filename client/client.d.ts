/**
 * Channels of an sse-gateway in a page: resumed without a hole, every gap told, one stream for all tabs.
 * No dependencies, no build. How to use it: docs/client.md.
 * @module
 */
export type Options = import("./types.js").Options;
/** @typedef {import("./types.js").Options} Options */
/**
 * Subscribe to channels of the gateway at `url`.
 * @template {object} [C=Record<string, any>] payloads by channel
 * @param {string | URL} url
 * @param {Options} options
 * @returns {Stream<C>}
 */
export declare const connect: <C extends object = Record<string, any>>(url: string | URL, options: Options) => Stream<C>;
/** @template {object} [C=Record<string, any>] */
export declare class Stream<C extends object = Record<string, any>> {
    #private;
    /** @type {import("./types.js").State} */
    state: import("./types.js").State;
    /** @type {string | undefined} why it is waiting or closed */
    reason: string | undefined;
    /** @type {string | undefined} */
    lastEventId: string | undefined;
    /**
     * @param {string | URL} url
     * @param {Options} options
     */
    constructor(url: string | URL, { share, lastEventId, signal, ...options }: Options);
    /**
     * Call `handler` for the events of a channel, for "gap", "state", or "*" (all events and gaps).
     * @template {keyof import("./types.js").Told<C>} K
     * @param {K} name
     * @param {(value: import("./types.js").Told<C>[K]) => void} handler
     * @returns {() => void} ends that
     */
    on<K extends keyof import("./types.js").Told<C>>(name: K, handler: (value: import("./types.js").Told<C>[K]) => void): () => void;
    /** End it for good. */
    close(reason?: string): void;
    /** @returns {AsyncGenerator<import("./types.js").Told<C>["*"], void, void>} events and gaps, until it is closed */
    [Symbol.asyncIterator](): AsyncGenerator<import("./types.js").Told<C>["*"], void, void>;
}

export * from "./types.js";
