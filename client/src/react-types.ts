/** The public types of `sse-gateway-client/react`. */

import type { Change, ChannelEvent, Gap, Options, Stream } from "./types.js";

/** Handlers by channel, and for "gap", "state" and "*". The handlers of the latest render are called. */
export type Handlers<C extends object> = string extends keyof C
  ? { [name: string]: (value: any) => void }
  : { [K in keyof C]?: (event: ChannelEvent<C[K]>) => void } & {
      gap?: (gap: Gap) => void;
      state?: (change: Change) => void;
      "*"?: (event: ChannelEvent<C[keyof C]> | Gap) => void;
    };

/** The options of `connect`, compared by value, and handlers. A `token` function may differ between renders. */
export interface StreamOptions<C extends object> extends Omit<Options, "signal"> {
  on?: Handlers<C>;
}

export interface StreamState<C extends object> extends Change {
  /**
   * Null until the stream is open for the first time, and a new object when the options change. An effect that
   * depends on it can fetch the current state: no later event is missed.
   */
  stream: Stream<C> | null;
}
