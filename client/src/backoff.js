/**
 * The retry policy: how long to wait before the next connection.
 * @module
 */

/** Milliseconds that a stream has to stay open before failures are counted from zero again. */
const HEALTHY_AFTER = 10_000;

/**
 * Compute delays: a minimum set by the gateway, plus a random part of a window that doubles with each failure.
 *
 * The random part covers the whole window ("full jitter"), so that the many clients of a gateway that went down
 * return evenly spread.
 * @param {number} minDelay milliseconds
 * @param {number} maxDelay milliseconds
 */
export function createBackoff(minDelay, maxDelay) {
  let failures = 0;
  /** The `retry:` of the last `stream.open`, in milliseconds: the least window after a network error. */
  let retry = 0;
  let openedAt = 0;
  /** Milliseconds that the gateway requested for the current attempt: `Retry-After`, or `retry:` of `stream.close`. */
  let required = 0;
  /** The time before which no attempt may be made. */
  let notBefore = 0;

  return {
    /** An attempt starts: a delay that was requested for the previous one is over. */
    onAttempt() {
      openedAt = required = notBefore = 0;
    },

    /** @param {number} retryOfStream milliseconds */
    onOpen(retryOfStream) {
      retry = retryOfStream;
      openedAt = Date.now();
    },

    /**
     * Wait at least this long after the current attempt.
     * @param {number} milliseconds
     */
    require(milliseconds) {
      required = milliseconds;
    },

    /**
     * Return the milliseconds to wait after the attempt that has just ended, and count it as a failure.
     * @param {boolean} isOffline without a network only a gateway on the same machine can answer: no hurry
     */
    next(isOffline) {
      const now = Date.now();
      if (openedAt && now - openedAt >= HEALTHY_AFTER) failures = 0;
      const shortest = Math.max(minDelay, required ? 0 : retry, 1);
      const window = Math.min(maxDelay, shortest * 2 ** Math.min(failures++, 30));
      notBefore = now + required;
      return required + (isOffline ? maxDelay : Math.random() * window);
    },

    /** Return the time of an attempt that is made early because the network, or the user, has returned. */
    earlyRetryAt: () => Math.max(Date.now(), notBefore) + Math.random() * minDelay,
  };
}
