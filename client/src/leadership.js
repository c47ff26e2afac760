/**
 * The election of the tab, or worker, that has the connection of all.
 * @module
 */

import { aborted, DEFAULT_HEARTBEAT, ignore } from "./common.js";

/**
 * Milliseconds that a leader has to answer a tab that joins.
 *
 * A leader that answers nothing hangs or is frozen, and its lock is stolen.
 */
const MAX_ANSWER_TIME = 5_000;

/**
 * Status reports that may be missing before the lock is stolen, and one more at random, so that tabs do not steal at
 * once. Browsers let timers of hidden tabs run once a minute: with less, hidden tabs would steal from each other.
 */
const MAX_MISSED_REPORTS = 10;

/** Milliseconds in which a worker finds out that tabs are left. */
const MAX_TABS_CHECK = 1_000;

/**
 * Lead while this tab holds a Web Lock, which the browser passes on when a tab closes or crashes.
 *
 * Tabs also hold a second lock together, for as long as they take part: a worker that can get it alone has no tabs.
 * @param {string} name of the lock
 * @param {boolean} isWorker
 * @param {(signal: AbortSignal) => Promise<void>} onElected leads until the signal is aborted
 */
export function createLeadership(name, isWorker, onElected) {
  const tabsLock = `${name} tabs`;
  /** From one request for the lock to the next. */
  let term = new AbortController();
  let stealTimer = 0;

  /**
   * Lead as soon as the lock is free, and stand again when a term is over. Never throws.
   * @param {boolean} [steal] take the lock from its holder
   */
  async function stand(steal) {
    const { locks } = navigator;
    term.abort();
    const { signal } = (term = new AbortController());
    if (!isWorker) locks.request(tabsLock, { mode: "shared", signal }, () => aborted(signal)).catch(ignore);
    const lead = () => {
      clearTimeout(stealTimer);
      return onElected(signal);
    };
    try {
      // A lock may be granted at the moment in which its request is aborted.
      await locks.request(name, steal ? { steal } : { signal }, async () => signal.aborted || lead());
    } catch (error) {
      // AbortError: this tab left, or its lock was stolen. Anything else: a document that may not use locks, such as
      // a sandboxed frame, leads alone.
      if (/** @type {Error} */ (error).name !== "AbortError") await lead();
    }
    if (!signal.aborted) standAgain();
  }

  /** End the term, if there is one, and request the lock behind those that wait for it. */
  function standAgain() {
    expectReport();
    stand();
  }

  /** Stop taking part. */
  function leave() {
    clearTimeout(stealTimer);
    term.abort();
  }

  /** The leader is alive: steal its lock if it does not report in time from now on. */
  function expectReport() {
    stealAfter((MAX_MISSED_REPORTS + Math.random()) * DEFAULT_HEARTBEAT);
  }

  /** A question has gone out: steal the lock if the leader does not answer. */
  function expectAnswer() {
    stealAfter(MAX_ANSWER_TIME);
  }

  /** @param {number} milliseconds */
  function stealAfter(milliseconds) {
    clearTimeout(stealTimer);
    stealTimer = setTimeout(stand, milliseconds, true);
  }

  /**
   * Call a function if no tab takes part.
   * @param {() => void} callback
   */
  function ifAlone(callback) {
    const signal = AbortSignal.timeout(MAX_TABS_CHECK);
    navigator.locks.request(tabsLock, { signal }, callback).catch(ignore);
  }

  return { stand, standAgain, leave, expectReport, expectAnswer, ifAlone };
}
