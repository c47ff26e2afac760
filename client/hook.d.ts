/** What react.js takes and gives. */

import type { Change, ChannelEvent, Gap, Options, Stream } from "./types.js";

/** What `useStream` of react.js calls, by channel, and for "gap", "state" and "*"; always that of the last render. */
export type Handlers<C extends object> = string extends keyof C
  ? { [name: string]: (value: any) => void }
  : { [K in keyof C]?: (event: ChannelEvent<C[K]>) => void } & {
      gap?: (gap: Gap) => void;
      state?: (change: Change) => void;
      "*"?: (event: ChannelEvent<C[keyof C]> | Gap) => void;
    };

/** The options of `connect`, by value, and handlers. A `token` that is a function may be another one with each render. */
export interface StreamOptions<C extends object> extends Omit<Options, "signal"> {
  on?: Handlers<C>;
}

export interface StreamState<C extends object> extends Change {
  /**
   * Null until it was open for the first time, and another one when the options change. An effect that depends on it
   * may fetch what was there before: nothing that comes after falls into a hole.
   */
  stream: Stream<C> | null;
}
