/** Types that the modules of the client share and that no page sees. */

import type { Change, ChannelEvent, Gap, Options } from "./types.js";

/** The options of a connection, with defaults applied. Plain data, except for `token`. */
export interface Settings extends Pick<Options, "credentials" | "last" | "since" | "token" | "types"> {
  /** URL of the gateway without a trailing slash. */
  base: string;
  channels: string[];
  /**
   * The name sent as `client=`. When a connection of the same name arrives, the gateway closes the older one, so
   * that a half-open connection does not count twice. All tabs that share a stream use one name.
   */
  client: string;
  minDelay: number;
  maxDelay: number;
  transport: "fetch" | "eventsource";
}

/** One step of a stream: a new state, or an event with its id and the id before it. */
export interface Update {
  change?: Change;
  /** Undefined where the channel keeps no history. */
  id?: string;
  /** The resume point before this event: a tab with another one has missed something. */
  previousId?: string;
  /** Undefined for an id without an event: the resume point that `stream.open` reports. */
  event?: ChannelEvent | Gap;
}

/** One block of an event stream (WHATWG HTML §9.2.6). */
export interface Message {
  event?: string;
  data: string;
  id?: string;
  /** Milliseconds. */
  retry?: number;
}

/** What a transport needs for one attempt to connect. */
export interface Attempt {
  settings: Settings;
  lastEventId: string | undefined;
  /** Aborted when the attempt or its connection has to end. */
  signal: AbortSignal;
  /** Returns the token, or a new one in place of `refused`. Throws if `signal` was aborted meanwhile. */
  getToken(refused?: string): Promise<string | null | undefined>;
  /** To be called whenever bytes arrive: resets the watchdog. */
  onActivity(): void;
  onMessage(message: Message): void;
}

/**
 * Connects once, and resolves when the connection has ended.
 * Throws `Rejection` for a response without a stream, and anything else for a network error.
 */
export type Transport = (attempt: Attempt) => Promise<void>;

/** What tabs, and the worker that leads them, broadcast to each other. */
export type TabMessage =
  /** A tab requests the events after `lastEventId`. */
  | { kind: "join"; from: string; lastEventId: string | undefined }
  /** A tab that does not lead answers `join`: if the new tab becomes the leader, it resumes here. */
  | { kind: "resume-point"; to: string; lastEventId: string | undefined }
  /** The leader passes on an event; with `to`, from its history. */
  | ({ kind: "event"; to?: string } & Update)
  /** The leader reports its state: when it changes, at regular intervals, and after the events for `to`. */
  | {
      kind: "status";
      to?: string;
      change: Change | undefined;
      lastEventId: string | undefined;
      client: string;
      /** The history no longer holds all events that `to` has missed. */
      isIncomplete?: boolean;
    }
  /** The worker requests a token, in place of `refused` if that is set. */
  | { kind: "token-request"; refused: string | undefined }
  /** A tab answers `token-request`. */
  | { kind: "token"; token: string | null | undefined };

/** What a tab sends to the worker: its subscription, or that it is leaving. */
export type WorkerRequest = WorkerSettings | "leave";

/** A subscription as structured clone can carry it: the token function stays in the tab. */
export interface WorkerSettings {
  settings: Settings;
  hasToken: boolean;
  lastEventId: string | undefined;
}
