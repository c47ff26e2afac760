/**
 * One connection for all tabs of an origin.
 *
 * One tab, or a worker, leads: it has the `Connection`, and broadcasts each event with the id of the event before it.
 * A tab accepts an event if that id is its own resume point. Otherwise it has missed some, and requests them from the
 * leader by `join`: the leader replays them from its history, or reports that it cannot, which is a gap.
 *
 * So it does not matter in which order broadcasts arrive and the lock of a leader that died is granted: a new leader
 * resumes at its own resume point, and tabs that are ahead of it drop what they already have.
 * @module
 */

import { aborted, DEFAULT_HEARTBEAT, gapsOf, randomName, reportUncaught, resolveToken } from "./common.js";
import { openConnection } from "./connection.js";
import { createHistory } from "./history.js";
import { createLeadership } from "./leadership.js";
import { watchLifecycle } from "./lifecycle.js";
import { startWorker } from "./worker.js";

/** @import { Settings, TabMessage, Update } from "./internals.js" */
/** @import { Change } from "./types.js" */

/** Milliseconds for which one tab keeps the others from answering the same request for a token. */
const TOKEN_LOCK_TIME = 1_000;

/**
 * Take part in a shared stream, as a tab or as the worker.
 * @param {Settings} settings `client` follows the leader's
 * @param {string} name
 * @param {(update: Update) => void} onUpdate
 * @param {{ hasToken: boolean, lastEventId: string | undefined }} [worker] set in a worker: whether its tabs have a
 *   token, and where the first of them resumes
 */
export function joinShared(settings, name, onUpdate, worker) {
  const tab = randomName();
  const history = createHistory();
  const closed = new AbortController();
  const leadership = createLeadership(name, !!worker, lead);
  let lastEventId = worker?.lastEventId;
  /** @type {Change | undefined} the latest state of the stream */
  let latestChange;
  /** @type {string | undefined} the resume point of a tab that answered when nobody led */
  let resumePoint;
  /** @type {BroadcastChannel | undefined} undefined while the page is paused, and after the end */
  let channel;
  /** @type {ReturnType<typeof openConnection> | undefined} set while this tab leads */
  let connection;
  /** Whether a `join` is unanswered: one is enough, however many events turn out to be missing. */
  let isJoining = false;
  /** @type {(() => void) | undefined} set until the worker is ready, or turns out to be missing */
  let takePart;
  /** @type {SharedWorker | void} */
  let sharedWorker;
  /** @type {((token: string | null | undefined) => void) | undefined} in a worker, while it waits for a token */
  let onToken;

  function start() {
    if (channel) return;
    channel = new BroadcastChannel(name);
    channel.onmessage = ({ data }) => receive(data);
    takePart = () => {
      takePart = undefined;
      join();
      leadership.stand();
    };
    if (worker) return takePart();
    const request = { settings, hasToken: !!settings.token, lastEventId };
    sharedWorker = startWorker(name, request, () => takePart?.());
  }

  function leave() {
    leadership.leave();
    channel?.close();
    channel = takePart = undefined;
    isJoining = false;
    sharedWorker?.port.postMessage("leave");
  }

  function close() {
    closed.abort();
    leave();
  }

  /** In a worker: close when no tab is left. */
  const closeIfAlone = () => leadership.ifAlone(close);

  /** @param {boolean} isPaused */
  function pause(isPaused) {
    if (!isPaused) return start();
    leave();
    accept({ change: { state: "paused" } });
  }

  /**
   * Pass an update on to this tab's stream, and remember it.
   * @param {Update} update
   */
  function accept(update) {
    const { change, id, previousId } = update;
    if (id && id !== previousId) {
      lastEventId = id;
      history.add(id, update);
    }
    latestChange = change ?? latestChange;
    onUpdate(update);
    if (change?.state === "closed") close();
  }

  /** @param {TabMessage} message */
  const post = (message) => channel?.postMessage(message);

  /** @param {TabMessage} message */
  function receive(message) {
    if (message.kind === "token") onToken?.(message.token);
    else if (message.kind === "token-request") lendToken(message.refused);
    else if (message.kind === "join") answer(message.from, message.lastEventId);
    else if (connection || (message.to ?? tab) !== tab) return;
    else if (message.kind === "resume-point") resumePoint ??= message.lastEventId;
    else {
      leadership.expectReport();
      if (message.kind === "event") followEvent(message);
      else followStatus(message);
    }
  }

  // A tab that leads

  /** @param {AbortSignal} signal */
  async function lead(signal) {
    lastEventId ??= resumePoint;
    const own = openConnection(settings, lastEventId, (update) => {
      const { change } = update;
      if (connection !== own) return; // its term is over: another leads
      // The lock was stolen while this tab was frozen, and the new leader's connection has replaced this one.
      if (change?.reason === "replaced") return leadership.standAgain();
      post(change ? status(change) : { kind: "event", ...update });
      accept(update);
    });
    connection = own;
    const timer = setInterval(() => {
      post(status());
      if (worker) closeIfAlone();
    }, DEFAULT_HEARTBEAT);
    await aborted(signal);
    clearInterval(timer);
    connection = undefined;
    own.close("left");
  }

  /** @returns {Extract<TabMessage, { kind: "status" }>} */
  function status(change = latestChange) {
    return { kind: "status", change, lastEventId, client: settings.client };
  }

  /**
   * Bring a tab up to date. If this one does not lead, nobody may: then the other needs a place to resume from.
   * @param {string} to
   * @param {string | undefined} after the last event of that tab
   */
  function answer(to, after) {
    if (!connection) return post({ kind: "resume-point", to, lastEventId });
    const missed = after && after !== lastEventId ? history.after(after) : [];
    for (const update of missed ?? []) post({ ...update, kind: "event", to });
    post({ ...status(), to, isIncomplete: !missed });
  }

  // A tab that follows

  /** Report this tab to the leader, and request what it has missed. */
  function join() {
    if (!channel || isJoining || connection) return;
    isJoining = true;
    post({ kind: "join", from: tab, lastEventId });
    leadership.expectAnswer();
  }

  /** @param {Update} update */
  function followEvent({ id, previousId, event }) {
    const isKnown = history.has(id);
    // Events without an id, of a channel that keeps no history, cannot be replayed and are never missed.
    if (!id || previousId === (lastEventId ?? previousId)) {
      if (isKnown) lastEventId = id;
      else accept({ id, previousId, event });
    } else if (!isKnown) join();
  }

  /** @param {Extract<TabMessage, { kind: "status" }>} status */
  function followStatus({ change, lastEventId: leaderId, client, isIncomplete }) {
    settings.client = client;
    isJoining = false;
    if (leaderId && lastEventId === undefined) {
      lastEventId = leaderId;
      history.add(leaderId, {});
    }
    // Neither level with the leader nor ahead of it.
    if (leaderId !== lastEventId && !history.has(leaderId)) {
      if (!isIncomplete) return join();
      for (const event of gapsOf(settings.channels, "handover", lastEventId)) onUpdate({ event });
      lastEventId = leaderId;
    }
    if (change?.state !== latestChange?.state || change?.reason !== latestChange?.reason) accept({ change });
  }

  // Tokens for the worker, which has none: functions cannot be sent to it

  /**
   * In the worker: request a token from the tabs.
   * @param {string} [refused]
   * @returns {Promise<string | null | undefined>}
   */
  function requestToken(refused) {
    post({ kind: "token-request", refused });
    return new Promise((resolve, reject) => {
      onToken = resolve;
      setTimeout(reject, DEFAULT_HEARTBEAT);
    });
  }

  /**
   * In a tab: call the page's `token()`, in one tab only, and send what it returns.
   * @param {string | undefined} refused
   */
  function lendToken(refused) {
    /** @param {Lock | null} lock null if another tab has it */
    const lend = async (lock) => {
      if (lock) post({ kind: "token", token: await resolveToken(settings.token, refused) });
      // A slower tab may receive the request only now.
      await new Promise((resolve) => setTimeout(resolve, TOKEN_LOCK_TIME));
    };
    navigator.locks.request(`${name} token ${refused}`, { ifAvailable: true }, lend).catch(reportUncaught);
  }

  if (worker?.hasToken) settings.token = requestToken;
  watchLifecycle(closed.signal, {
    onReturn: () => {
      isJoining = false; // the answer may have been lost while the page was frozen
      join();
    },
    onPause: pause,
  });
  start();
  return { close, closeIfAlone, isClosed: () => closed.signal.aborted };
}
