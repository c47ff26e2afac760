/** The public types of `sse-gateway-client`. */
/** An event of a channel; `id` is null where the channel keeps no history. */
export interface ChannelEvent<P = any> {
    channel: string;
    id: string | null;
    type: string | null;
    /** Unix time in milliseconds. */
    timestamp: number;
    payload: P;
}
/** Events of `channel` after the id `after` and before `oldest` may be missing: fetch its state again. */
export interface Gap {
    type: "stream.gap";
    channel: string;
    /**
     * From the gateway: `expired`, `unknown_id`, `no_resume_point`, `slow_client`, `source_interrupted`.
     * From the client: `handover`, `slow_reader`.
     */
    reason: string;
    after: string | null;
    oldest: string | null;
    /** Number of missing events, if known. */
    missing?: number;
}
/**
 * `connecting`: a request is in progress. `open`: events arrive. `waiting`: for the next attempt. `offline`: the
 * browser reports no network. `paused`: the page is frozen or in the back/forward cache. `closed`: for good.
 */
export type State = "connecting" | "open" | "waiting" | "offline" | "paused" | "closed";
export interface Change {
    state: State;
    /** Why the stream is waiting or closed. */
    reason?: string;
    /** Milliseconds until the next attempt. */
    delay?: number;
}
/** What handlers receive, by the name passed to `on`. */
export type EventMap<C> = {
    [K in keyof C]: ChannelEvent<C[K]>;
} & {
    gap: Gap;
    state: Change;
    "*": ChannelEvent<C[keyof C]> | Gap;
};
/** @deprecated Use `EventMap`. */
export type Told<C> = EventMap<C>;
type Token = string | null | undefined;
export interface Options {
    /** Channel names, at least one. */
    channels: string[];
    /** A function is called before each connection, and once more after a 401, with the rejected token. */
    token?: string | ((refused?: string) => Token | Promise<Token>);
    /** As for `fetch`; "include" sends cookies to another origin. */
    credentials?: RequestCredentials;
    /** Only events of these types. */
    types?: string[];
    /** Start with this many past events. */
    last?: number;
    /** Start after an id, at an ISO time, or at a duration before now ("15m"). */
    since?: string;
    /** Resume after this event. */
    lastEventId?: string;
    /** One stream for all tabs of this origin; a string restricts it to tabs that pass the same string. */
    share?: boolean | string;
    /** Milliseconds, by default 1,000: the first delay lies between 0 and this. */
    minDelay?: number;
    /** Milliseconds, by default 30,000: the longest delay, except for one that the gateway requests. */
    maxDelay?: number;
    /** "eventsource" is the default where fetch cannot stream. */
    transport?: "fetch" | "eventsource";
    /** Closes the stream. */
    signal?: AbortSignal;
}
/** A subscription, from `connect` until it is closed. Iterating yields events and gaps. */
export interface Stream<C extends object = Record<string, any>> extends AsyncIterable<EventMap<C>["*"]> {
    readonly state: State;
    /** Why the stream is waiting or closed: a reason of the gateway or of the client (docs/client.md). */
    readonly reason: string | undefined;
    /** The event after which the stream would resume. */
    readonly lastEventId: string | undefined;
    /**
     * Call `handler` for the events of a channel, or for "gap", "state", or "*" (all events and gaps).
     * Returns a function that removes the handler.
     */
    on<K extends keyof EventMap<C>>(name: K, handler: (value: EventMap<C>[K]) => void): () => void;
    /** Close the stream for good. */
    close(reason?: string): void;
}
/** Subscribe to channels of the gateway at `url`; `C` maps channels to the types of their payloads. */
export type Connect = <C extends object = Record<string, any>>(url: string | URL, options: Options) => Stream<C>;
export {};
