/** What client.js takes and gives. */

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
  /** `expired`, `unknown_id`, `no_resume_point`, `slow_client`, `source_interrupted`, or of the client itself `handover`, `slow_reader`. */
  reason: string;
  after: string | null;
  oldest: string | null;
  /** How many, where that is known. */
  missing?: number;
}

/**
 * `connecting`: a request is under way. `open`: events arrive. `waiting`: for the next attempt. `offline`: the
 * browser says so. `paused`: the page is in the back/forward cache, or frozen. `closed`: for good.
 */
export type State = "connecting" | "open" | "waiting" | "offline" | "paused" | "closed";

export interface Change {
  state: State;
  /** Why it is waiting or closed. */
  reason?: string;
  /** Milliseconds until the next attempt. */
  delay?: number;
}

/** What `on` calls a handler with, by name. */
export type Told<C> = { [K in keyof C]: ChannelEvent<C[K]> } & {
  gap: Gap;
  state: Change;
  "*": ChannelEvent<C[keyof C]> | Gap;
};

type Token = string | null | undefined;

export interface Options {
  /** Names of channels, at least one. */
  channels: string[];
  /** Asked before each connection, and once more with a token that was refused. */
  token?: string | ((refused?: string) => Token | Promise<Token>);
  /** As of `fetch`; "include" sends cookies to another origin. */
  credentials?: RequestCredentials;
  /** Only events of these types. */
  types?: string[];
  /** Begin with so many past events. */
  last?: number;
  /** Begin after an id, at an ISO time, or a duration ago ("15m"). */
  since?: string;
  /** Resume after this event. */
  lastEventId?: string;
  /** One stream for all tabs of this origin; with a text, for those that give the same one. */
  share?: boolean | string;
  /** Milliseconds, 1,000 unless said otherwise: the first delay is between 0 and this. */
  minDelay?: number;
  /** Milliseconds, 30,000 unless said otherwise: no delay is longer, but for one that the gateway asks for. */
  maxDelay?: number;
  /** "eventsource" where fetch cannot stream. */
  transport?: "fetch" | "eventsource";
  /** Closes the stream. */
  signal?: AbortSignal;
}

/** A subscription, from `connect` until it is closed. Iterating gives events and gaps. */
export interface Stream<C extends object = Record<string, any>> extends AsyncIterable<Told<C>["*"]> {
  readonly state: State;
  /** Why it is waiting or closed: a reason of the gateway's, or of the client's own (docs/client.md). */
  readonly reason: string | undefined;
  /** Where it would resume. */
  readonly lastEventId: string | undefined;
  /**
   * Call `handler` for the events of a channel, or for "gap", "state", or "*" (all events and gaps).
   * Returns what ends that.
   */
  on<K extends keyof Told<C>>(name: K, handler: (value: Told<C>[K]) => void): () => void;
  /** End it for good. */
  close(reason?: string): void;
}

/** Subscribe to channels of the gateway at `url`; `C` maps channels to the types of their payloads. */
export type Connect = <C extends object = Record<string, any>>(url: string | URL, options: Options) => Stream<C>;
