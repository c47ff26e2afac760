/**
 * The client of sse-gateway: subscribes a page to channels. docs/client.md describes it.
 * @module
 */

import { ignore, randomName } from "./common.js";
import { openConnection } from "./connection.js";
import { joinShared } from "./sharing.js";
import { createStream } from "./stream.js";
import { defaultTransport } from "./transports.js";
import { isTabWorker, serveTabs, shareName } from "./worker.js";

/** @type {import("./types.js").Connect} */
export const connect = (url, options) => {
  const { channels, share, last, since, lastEventId, types, credentials, token, signal } = options;
  const { minDelay = 1_000, maxDelay = 30_000, transport = defaultTransport() } = options;
  if (!Array.isArray(channels) || !channels.length) throw new TypeError("channels is empty");
  if (share && (lastEventId ?? last ?? since) !== undefined)
    throw new TypeError("share excludes last, since, lastEventId");
  const base = new URL(url, globalThis.document?.baseURI).href.replace(/\/+$/, "");
  const subscription = { base, channels, last, since, types, credentials, token };
  const settings = { ...subscription, transport, minDelay, maxDelay, client: randomName() };
  // Where tabs cannot find each other, each has a stream of its own.
  const canShare = share && globalThis.navigator?.locks && globalThis.BroadcastChannel;
  const stream = createStream(channels, lastEventId, (onUpdate) =>
    canShare
      ? joinShared(settings, shareName(settings, share), onUpdate)
      : openConnection(settings, lastEventId, onUpdate),
  );
  signal?.addEventListener("abort", () => stream.close("aborted"));
  if (signal?.aborted) stream.close("aborted");
  return stream;
};

if (isTabWorker())
  serveTabs((name, { settings, ...worker }) => joinShared(settings, name, ignore, worker));
