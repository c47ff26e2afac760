/**
 * Events of the browser that concern a connection.
 * @module
 */

/**
 * @typedef {object} LifecycleHandlers
 * @property {() => void} onReturn the network is back, or the page is visible again
 * @property {() => void} [onOffline] the network is gone
 * @property {(isPaused: boolean) => void} onPause the page is frozen or leaves for the back/forward cache, or is back
 */

/**
 * Call handlers until a signal is aborted. Where there is no page (workers, Node) fewer events exist, or none.
 * @param {AbortSignal} signal
 * @param {LifecycleHandlers} handlers
 */
export function watchLifecycle(signal, { onReturn, onOffline, onPause }) {
  const { document } = globalThis;
  /** @type {(target: EventTarget | undefined, name: string, handler: (() => void) | undefined) => void} */
  const listen = (target, name, handler) => {
    if (handler) target?.addEventListener?.(name, handler, { signal });
  };
  const pause = () => onPause(true);
  const resume = () => onPause(false);
  listen(globalThis, "online", onReturn);
  listen(globalThis, "offline", onOffline);
  listen(document, "visibilitychange", () => document.hidden || onReturn());
  listen(document, "freeze", pause);
  listen(document, "resume", resume);
  listen(document && globalThis, "pagehide", pause);
  listen(document && globalThis, "pageshow", resume);
}
