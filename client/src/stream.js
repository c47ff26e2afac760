/**
 * The object that `connect` returns: state, handlers, iteration.
 * @module
 */

import { gapsOf, reportUncaught } from "./common.js";

/** @import { Update } from "./internals.js" */
/** @import { Change, ChannelEvent, Gap, Stream } from "./types.js" */

/** Events that wait for a slow reader of the iterator. */
const MAX_QUEUED = 10_000;

/** Names of handlers that are not channels: a channel of such a name reaches "*" only. */
const RESERVED_NAMES = ["gap", "state", "*"];

/**
 * Return a stream over a source of updates.
 *
 * Its methods do not use `this`: a page may pass `stream.close` on as it is.
 * @param {string[]} channels
 * @param {string | undefined} lastEventId
 * @param {(onUpdate: (update: Update) => void) => { close(reason: string | undefined): void }} open starts the source,
 *   which must not report an update before it is returned
 * @returns {Stream<any>}
 */
export function createStream(channels, lastEventId, open) {
  /** @type {Map<string, Set<(value: any) => void>>} */
  const handlers = new Map();

  /** @type {(name: string, value: Change | ChannelEvent | Gap) => void} */
  const emit = (name, value) => {
    for (const handler of [...(handlers.get(name) ?? [])])
      try {
        handler(value);
      } catch (error) {
        reportUncaught(error);
      }
  };

  /** @param {Update} update */
  const apply = ({ change, id, event }) => {
    // Also between two events of one read: a handler of the first may have closed the stream.
    if (stream.state === "closed") return;
    stream.lastEventId = id ?? stream.lastEventId;
    if (change) {
      stream.state = change.state;
      stream.reason = change.reason;
      if (change.state === "closed") source.close(change.reason);
      emit("state", change);
    }
    if (!event) return;
    if (event.type === "stream.gap") emit("gap", event);
    else if (!RESERVED_NAMES.includes(event.channel)) emit(event.channel, event);
    emit("*", event);
  };

  const stream = {
    state: /** @type {Change["state"]} */ ("connecting"),
    reason: /** @type {string | undefined} */ (undefined),
    lastEventId,
    /** @type {Stream["on"]} */
    on(name, handler) {
      const ofName = handlers.get(name) ?? new Set();
      handlers.set(name, ofName.add(handler));
      return () => void ofName.delete(handler);
    },
    close(reason = "closed") {
      apply({ change: { state: "closed", reason } });
    },
    async *[Symbol.asyncIterator]() {
      /** @type {(ChannelEvent | Gap)[]} */
      let queue = [];
      /** @type {((value?: unknown) => void) | undefined} */
      let wake;
      const removers = [
        stream.on("state", () => wake?.()),
        stream.on("*", (event) => {
          if (queue.push(event) > MAX_QUEUED) queue = gapsOf(channels, "slow_reader");
          wake?.();
        }),
      ];
      try {
        while (queue.length || stream.state !== "closed") {
          const event = queue.shift();
          if (event) yield event;
          else await new Promise((resolve) => (wake = resolve));
        }
      } finally {
        for (const remove of removers) remove();
      }
    },
  };
  const source = open(apply);
  return stream;
}
